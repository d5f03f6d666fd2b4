"""Lowerings of element-by-element operations: arithmetic, comparisons, logic, functions, factories and casts."""

import math

import torch

from envs.kernel.lower import Lowering, lowers
from envs.kernel.tape import Node, Ref, Refusal


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


@lowers("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def _pow(low: Lowering, node: Node, a, b):
    kind, p = low.result_kind(node), low.program
    special = {
        2: lambda v: p.op("mul", v, v),
        1: lambda v: v,
        3: lambda v: p.op("mul", p.op("mul", v, v), v),
        0: lambda v: p.const(1, kind),
        0.5: lambda v: p.op("sqrt", v),
        -0.5: lambda v: p.op("div", p.const(1.0, "f"), p.op("sqrt", v)),
        -1: lambda v: p.op("div", p.const(1.0, "f"), v),
        -2: lambda v: p.op("div", p.const(1.0, "f"), p.op("mul", v, v)),
    }
    if isinstance(b, (int, float)) and b in special and (kind == "f" or b >= 0):
        return low.map(special[b], low.value(a, kind))
    out = low.map(lambda v, w: p.op("pow", v, w), low.value(a, kind), low.value(b, kind))
    return low.map(lambda v: low._as(v, kind), out)


@lowers("reciprocal.default")
def _reciprocal(low: Lowering, node: Node, a):
    one = low.program.const(1.0, "f")
    return low.map(lambda v: low.program.op("div", one, v), low.value(a, "f"))


@lowers("rsqrt.default")
def _rsqrt(low: Lowering, node: Node, a):
    one = low.program.const(1.0, "f")
    return low.map(lambda v: low.program.op("div", one, low.program.op("sqrt", v)), low.value(a, "f"))


@lowers("square.default")
def _square(low: Lowering, node: Node, a):
    return low.map(lambda v: low.program.op("mul", v, v), low.value(a, low.result_kind(node)))


@lowers("sigmoid.default")
def _sigmoid(low: Lowering, node: Node, a):
    p, one = low.program, low.program.const(1.0, "f")
    return low.map(lambda v: p.op("div", one, p.op("add", one, p.op("exp", p.op("neg", v)))), low.value(a, "f"))


@lowers("relu.default")
def _relu(low: Lowering, node: Node, a):
    kind, p = low.result_kind(node), low.program
    zero = p.const(0, kind)
    return low.map(lambda v: p.op("select", p.op("lt", v, zero), zero, v), low.value(a, kind))


@lowers("sign.default", "sgn.default")
def _sign(low: Lowering, node: Node, a):
    kind, p = low.result_kind(node), low.program
    zero, one = p.const(0, kind), p.const(1, kind)
    minus = p.const(-1, kind)
    return low.map(
        lambda v: p.op("select", p.op("lt", zero, v), one, p.op("select", p.op("lt", v, zero), minus, zero)),
        low.value(a, kind),
    )


@lowers("isnan.default")
def _isnan(low: Lowering, node: Node, a):
    if low.operand_kind(a) != "f":
        return low.full(low.array(a).shape, low.program.const(False, "b"))
    return low.map(lambda v: low.program.op("ne", v, v), low.array(a))


@lowers("isinf.default", "isfinite.default")
def _isinf(low: Lowering, node: Node, a):
    p, infinite = low.program, low.program.const(math.inf, "f")
    if node.name == "aten.isinf.default":
        return low.map(lambda v: p.op("eq", p.op("abs", v), infinite), low.value(a, "f"))
    return low.map(lambda v: p.op("lt", p.op("abs", v), infinite), low.value(a, "f"))


@lowers("nan_to_num.default")
def _nan_to_num(low: Lowering, node: Node, a, nan=None, posinf=None, neginf=None):
    p, limit = low.program, torch.finfo(torch.float32).max
    nan, posinf, neginf = nan or 0.0, limit if posinf is None else posinf, -limit if neginf is None else neginf

    def one(v):
        out = p.op("select", p.op("eq", v, p.const(math.inf, "f")), p.const(posinf, "f"), v)
        out = p.op("select", p.op("eq", v, p.const(-math.inf, "f")), p.const(neginf, "f"), out)
        return p.op("select", p.op("ne", v, v), p.const(nan, "f"), out)

    return low.map(one, low.value(a, "f"))


@lowers(
    "clamp.default",
    "clamp.Tensor",
    "clamp_min.default",
    "clamp_max.default",
    "clamp_min.Tensor",
    "clamp_max.Tensor",
    "hardtanh.default",
)
def _clamp(low: Lowering, node: Node, a, min=None, max=None):
    kind, p = low.result_kind(node), low.program
    if "clamp_max" in node.name:
        min, max = None, min
    out = low.value(a, kind)
    tensors = isinstance(min, Ref) or isinstance(max, Ref)
    if min is not None:  # nan stays nan: neither comparison holds
        out = low.map(
            lambda v, w: p.op("max", v, w) if tensors else p.op("select", p.op("lt", v, w), w, v),
            out,
            low.value(min, kind),
        )
    if max is not None:
        out = low.map(
            lambda v, w: p.op("min", v, w) if tensors else p.op("select", p.op("lt", w, v), w, v),
            out,
            low.value(max, kind),
        )
    return out.copy()


@lowers("logaddexp.default")
def _logaddexp(low: Lowering, node: Node, a, b):
    p = low.program

    def one(v, w):
        larger = p.op("max", v, w)
        smooth = p.op("add", larger, p.op("log1p", p.op("exp", p.op("neg", p.op("abs", p.op("sub", v, w))))))
        infinite = p.op("eq", p.op("abs", v), p.const(math.inf, "f"))
        return p.op("select", p.op("and", infinite, p.op("eq", v, w)), v, smooth)

    return low.map(one, low.value(a, "f"), low.value(b, "f"))


@lowers("lerp.Scalar", "lerp.Tensor")
def _lerp(low: Lowering, node: Node, a, b, weight):
    p = low.program

    def one(v, w, t):
        step = p.op("sub", w, v)
        near = p.op("add", v, p.op("mul", t, step))
        far = p.op("sub", w, p.op("mul", step, p.op("sub", p.const(1.0, "f"), t)))
        return p.op("select", p.op("lt", p.op("abs", t), p.const(0.5, "f")), near, far)

    return low.map(one, low.value(a, "f"), low.value(b, "f"), low.value(weight, "f"))


@lowers("addcmul.default", "addcdiv.default")
def _addc(low: Lowering, node: Node, a, b, c, value=1):
    kind, p = low.result_kind(node), low.program
    op = "mul" if "addcmul" in node.name else "div"
    factor = p.const(value, kind)
    return low.map(
        lambda u, v, w: p.op("add", u, p.op("mul", factor, p.op(op, v, w))),
        low.value(a, kind),
        low.value(b, kind),
        low.value(c, kind),
    )
