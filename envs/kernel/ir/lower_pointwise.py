"""Lowerings of element-by-element operations: arithmetic, comparisons, logic, functions of one number, casts."""

from envs.kernel.ir.lowering import Lowering, Rules
from envs.kernel.tracing.tape import Node, Ref, Refusal

RULES = Rules()
lowers = RULES.lowers


def _binary(name: str, swap: bool = False):
    def run(low: Lowering, node: Node, a, b, alpha=1):
        kind = low.result_kind(node)
        x, y = low.value(a, kind), low.value(b, kind)
        if alpha != 1:
            factor = low.program.const(alpha, kind)
            y = low.map(lambda v: low.program.op("mul", v, factor), y)
        if swap:
            x, y = y, x
        if kind == "b":  # + and * of bools are or and and
            return low.map(lambda v, w: low.program.op({"add": "or", "mul": "and"}[name], v, w), x, y)
        return low.map(lambda v, w: low.program.op(name, v, w), x, y)

    return run


for _names, _op in (
    (("add.Tensor", "add.Scalar"), "add"),
    (("sub.Tensor", "sub.Scalar"), "sub"),
    (("mul.Tensor", "mul.Scalar"), "mul"),
    (("atan2.default",), "atan2"),
    (("fmod.Tensor", "fmod.Scalar"), "fmod"),
    (("minimum.default",), "min"),
    (("maximum.default",), "max"),
):
    lowers(*_names)(_binary(_op))
lowers("rsub.Tensor", "rsub.Scalar")(_binary("sub", swap=True))


def _unary(name: str):
    def run(low: Lowering, node: Node, a, **_):
        kind = low.result_kind(node)
        return low.map(lambda v: low.program.op(name, v), low.value(a, kind))

    return run


for _name in (
    "neg",
    "abs",
    "sqrt",
    "sin",
    "cos",
    "tan",
    "exp",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "floor",
    "ceil",
    "trunc",
    "round",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
):
    lowers(f"{_name}.default")(_unary(_name))


def _compare(name: str, swap: bool = False):
    def run(low: Lowering, node: Node, a, b):
        kind = low.operand_kind(a, b)
        if not isinstance(b, Ref) and isinstance(a, Ref) and kind == "f" and low.operand_kind(a) == "i":
            kind = "f"  # an integer tensor against 0.5
        x, y = low.value(a, kind), low.value(b, kind)
        if kind == "b" and name in ("lt", "le"):
            x, y = low.cast(x, "b", "i"), low.cast(y, "b", "i")
        if kind == "b" and name in ("eq", "ne"):
            op = "xor"
            out = low.map(lambda v, w: low.program.op(op, v, w), x, y)
            return out if name == "ne" else low.map(lambda v: low.program.op("not", v), out)
        if swap:
            x, y = y, x
        return low.map(lambda v, w: low.program.op(name, v, w), x, y)

    return run


for _name, _op, _swap in (
    ("lt", "lt", False),
    ("le", "le", False),
    ("gt", "lt", True),
    ("ge", "le", True),
    ("eq", "eq", False),
    ("ne", "ne", False),
):
    lowers(f"{_name}.Tensor", f"{_name}.Scalar")(_compare(_op, _swap))


def _logic(name: str):
    def run(low: Lowering, node: Node, a, b):
        kind = "b" if node.name.startswith("aten.logical") else low.result_kind(node)
        if kind != "b":
            raise Refusal(f"the step uses bitwise operations on integers at {node.where}")
        return low.map(lambda v, w: low.program.op(name, v, w), low.value(a, "b"), low.value(b, "b"))

    return run


for _name in ("and", "or", "xor"):
    lowers(f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar", f"logical_{_name}.default", f"__{_name}__.Tensor")(
        _logic(_name)
    )


@lowers("bitwise_not.default", "logical_not.default")
def _not(low: Lowering, node: Node, a):
    if node.name == "aten.bitwise_not.default" and low.operand_kind(a) != "b":
        raise Refusal(f"the step uses bitwise operations on integers at {node.where}")
    return low.map(lambda v: low.program.op("not", v), low.value(a, "b"))


@lowers("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(low: Lowering, node: Node, condition, a, b):
    kind = low.result_kind(node)
    return low.map(
        lambda c, v, w: low.program.op("select", c, v, w),
        low.value(condition, "b"),
        low.value(a, kind),
        low.value(b, kind),
    )


@lowers("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(low: Lowering, node: Node, a, mask, value):
    return _where(low, node, mask, value, a)


@lowers("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode", "floor_divide.default", "true_divide.Tensor")
def _div(low: Lowering, node: Node, a, b, rounding_mode=None):
    kind, p = low.result_kind(node), low.program
    x, y = low.value(a, kind), low.value(b, kind)
    if node.name == "aten.floor_divide.default":
        rounding_mode = "floor"
    if rounding_mode == "floor" and kind == "f":  # torch: (a - fmod(a, b)) / b, then down
        return low.map(lambda v, w: _floor_div(p, v, w), x, y)
    quotient = low.map(lambda v, w: p.op("div", v, w), x, y)
    if rounding_mode is None:
        return quotient
    op = "floor" if rounding_mode == "floor" else "trunc"
    out = low.map(lambda v: p.op(op, v), quotient)
    return low.map(lambda v: low._as(v, kind), out)


def _floor_div(p, a: int, b: int) -> int:
    remainder = p.op("fmod", a, b)
    quotient = p.op("div", p.op("sub", a, remainder), b)
    zero = p.const(0.0, "f")
    wrong = p.op("and", p.op("ne", remainder, zero), p.op("xor", p.op("lt", b, zero), p.op("lt", remainder, zero)))
    quotient = p.op("select", wrong, p.op("sub", quotient, p.const(1.0, "f")), quotient)
    floor = p.op("floor", quotient)
    return p.op(
        "select",
        p.op("lt", p.const(0.5, "f"), p.op("sub", quotient, floor)),
        p.op("add", floor, p.const(1.0, "f")),
        floor,
    )


@lowers("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
def _remainder(low: Lowering, node: Node, a, b):
    kind, p = low.result_kind(node), low.program
    zero = p.const(0, kind)

    def one(v, w):
        if kind == "i":
            floor = low._as(p.op("floor", p.op("div", v, w)), "i")
            return p.op("sub", v, p.op("mul", floor, w))
        rest = p.op("fmod", v, w)
        wrong = p.op("and", p.op("ne", rest, zero), p.op("xor", p.op("lt", w, zero), p.op("lt", rest, zero)))
        return p.op("select", wrong, p.op("add", rest, w), rest)

    return low.map(one, low.value(a, kind), low.value(b, kind))
