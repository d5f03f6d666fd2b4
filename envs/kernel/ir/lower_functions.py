"""Lowerings of functions that take several scalar operations: powers, clamping, signs, special values, softplus."""

import math

import torch

from envs.kernel.ir.lowering import Lowering, Rules
from envs.kernel.tracing.tape import Node, Ref

RULES = Rules()
lowers = RULES.lowers


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
