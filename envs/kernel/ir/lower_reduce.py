"""Lowerings of reductions and small products of matrices."""

import functools
import math

import numpy as np

from envs.kernel.ir.lowering import Lowering, Rules
from envs.kernel.tracing.tape import Node, Refusal

RULES = Rules()
lowers = RULES.lowers


def _dims(low: Lowering, ref, dim) -> list[int]:
    n = low.tensor(ref).dim()
    if dim is None or dim == [] or dim == ():
        return list(range(n))
    return [d % n if n else 0 for d in ([dim] if isinstance(dim, int) else dim)] if n else []


def _rows(array: np.ndarray, dims: list[int]) -> np.ndarray:
    """[…kept, reduced]: the dimensions to reduce moved last and joined."""
    remaining = [d for d in range(array.ndim) if d not in dims]
    moved = np.transpose(array, remaining + dims)
    return moved.reshape(tuple(array.shape[d] for d in remaining) + (-1,))


def _reduce(low: Lowering, node: Node, a, dim, keepdim: bool, kind: str, function):
    """function(list of values) -> value over the dimensions `dim`, or poison where environments would meet."""
    dims = _dims(low, a, dim)
    shape = low.tensor(a).shape
    if any(low.over_envs(shape, d) for d in dims):
        return low.poisoned(node, "runs over all environments")
    rows = _rows(low.value(a, kind), dims)
    flat = rows.reshape(-1, rows.shape[-1]) if rows.size else rows.reshape(int(np.prod(rows.shape[:-1])), 0)
    out = np.array([function(row) for row in flat.tolist()], dtype=np.int32).reshape(rows.shape[:-1])
    for d in sorted(dims) if keepdim else ():
        out = np.expand_dims(out, d)
    return out


def _fold(low: Lowering, op: str, start):
    def run(row):
        return functools.reduce(lambda v, w: low.program.op(op, v, w), row) if row else start

    return run


@lowers("sum.dim_IntList", "sum.default")
def _sum(low: Lowering, node: Node, a, dim=None, keepdim=False, dtype=None):
    kind = low.result_kind(node)
    return _reduce(low, node, a, dim, keepdim, kind, _fold(low, "add", low.program.const(0, kind)))


@lowers("prod.dim_int", "prod.default")
def _prod(low: Lowering, node: Node, a, dim=None, keepdim=False, dtype=None):
    kind = low.result_kind(node)
    return _reduce(low, node, a, dim, keepdim, kind, _fold(low, "mul", low.program.const(1, kind)))


@lowers("mean.dim", "mean.default")
def _mean(low: Lowering, node: Node, a, dim=None, keepdim=False, dtype=None):
    p = low.program

    def run(row):
        return p.op("div", _fold(low, "add", None)(row), p.const(float(len(row)), "f"))

    return _reduce(low, node, a, dim, keepdim, "f", run)


@lowers("var.correction", "std.correction")
def _var(low: Lowering, node: Node, a, dim=None, correction=1, keepdim=False):
    p = low.program
    correction = 1 if correction is None else correction

    def run(row):
        mean = p.op("div", _fold(low, "add", None)(row), p.const(float(len(row)), "f"))
        squares = [p.op("mul", d, d) for d in (p.op("sub", v, mean) for v in row)]
        var = p.op("div", _fold(low, "add", None)(squares), p.const(float(len(row) - correction), "f"))
        return p.op("sqrt", var) if "std" in node.name else var

    return _reduce(low, node, a, dim, keepdim, "f", run)


@lowers("any.default", "any.dim", "any.dims")
def _any(low: Lowering, node: Node, a, dim=None, keepdim=False):
    return _reduce(low, node, a, dim, keepdim, "b", _fold(low, "or", low.program.const(False, "b")))


@lowers("all.default", "all.dim", "all.dims", "_is_all_true.default")
def _all(low: Lowering, node: Node, a, dim=None, keepdim=False):
    return _reduce(low, node, a, dim, keepdim, "b", _fold(low, "and", low.program.const(True, "b")))


@lowers("amin.default", "min.default")
def _amin(low: Lowering, node: Node, a, dim=None, keepdim=False):
    return _reduce(low, node, a, dim, keepdim, low.result_kind(node), _fold(low, "min", None))


@lowers("amax.default", "max.default")
def _amax(low: Lowering, node: Node, a, dim=None, keepdim=False):
    return _reduce(low, node, a, dim, keepdim, low.result_kind(node), _fold(low, "max", None))


def _arg(low: Lowering, row: list[int], op: str) -> tuple[int, int]:
    """(best value, index of its first occurrence); nan counts as best, as in torch."""
    p = low.program
    best, index = row[0], p.const(0, "i")
    for i, v in enumerate(row[1:], 1):
        better = p.op("lt", v, best) if op == "min" else p.op("lt", best, v)
        if p.kinds[v] == "f":
            better = p.op("or", better, p.op("and", p.op("ne", v, v), p.op("eq", best, best)))
        best, index = p.op("select", better, v, best), p.op("select", better, p.const(i, "i"), index)
    return best, index


@lowers("min.dim", "max.dim")
def _extreme(low: Lowering, node: Node, a, dim, keepdim=False):
    op, kind = node.name[5:8], low.kind(low.tensor(a).dtype)
    value_kind = "i" if kind == "b" else kind
    values = _reduce(low, node, a, dim, keepdim, value_kind, _fold(low, op, None))
    if isinstance(values, list):
        return values
    indices = _reduce(low, node, a, dim, keepdim, value_kind, lambda row: _arg(low, row, op)[1])
    return [low.cast(values, value_kind, kind), indices]


@lowers("argmin.default", "argmax.default")
def _argextreme(low: Lowering, node: Node, a, dim=None, keepdim=False):
    kind = low.kind(low.tensor(a).dtype)
    return _reduce(
        low, node, a, dim, keepdim, "i" if kind == "b" else kind, lambda row: _arg(low, row, node.name[8:11])[1]
    )


@lowers("linalg_vector_norm.default", "norm.ScalarOpt_dim", "norm.Scalar")
def _norm(low: Lowering, node: Node, a, order=2, dim=None, keepdim=False, dtype=None):
    p = low.program
    order = 2 if order is None else order
    if order not in (1, 2, math.inf):
        raise Refusal(f"the step takes a norm of order {order} at {node.where}")

    def run(row):
        if order == 1 or (order == 2 and len(row) == 1):
            return _fold(low, "add", None)([p.op("abs", v) for v in row])
        if order == math.inf:
            return _fold(low, "max", None)([p.op("abs", v) for v in row])
        return p.op("sqrt", _fold(low, "add", None)([p.op("mul", v, v) for v in row]))

    return _reduce(low, node, a, dim, keepdim, "f", run)


@lowers("cumsum.default", "cumprod.default")
def _cumulate(low: Lowering, node: Node, a, dim, dtype=None):
    if low.over_envs(low.tensor(a).shape, dim):
        return low.poisoned(node, "runs over all environments")
    op, kind = ("add" if "sum" in node.name else "mul"), low.result_kind(node)
    out = np.moveaxis(low.value(a, kind).copy(), dim, -1)
    for i in range(1, out.shape[-1]):
        out[..., i] = low.map(lambda v, w: low.program.op(op, v, w), out[..., i - 1], out[..., i])
    return np.moveaxis(out, -1, dim)


@lowers("_cdist_forward.default", "_euclidean_dist.default")
def _cdist(low: Lowering, node: Node, a, b, order=2.0, mode=None):
    if order != 2:
        raise Refusal(f"the step takes distances of order {order} at {node.where}")
    p = low.program
    x, y = low.value(a, "f"), low.value(b, "f")
    difference = low.map(lambda v, w: p.op("sub", v, w), x[..., :, None, :], y[..., None, :, :])
    squares = low.map(lambda v: p.op("mul", v, v), difference)
    out = [p.op("sqrt", _fold(low, "add", None)(row)) for row in squares.reshape(-1, squares.shape[-1]).tolist()]
    return np.array(out, dtype=np.int32).reshape(squares.shape[:-1])


def _product(low: Lowering, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[…, n, m] @ […, m, k]."""
    p = low.program
    terms = low.map(lambda v, w: p.op("mul", v, w), x[..., :, :, None], y[..., None, :, :])
    terms = np.moveaxis(terms, -2, -1)
    out = [_fold(low, "add", p.const(0.0, "f"))(row) for row in terms.reshape(-1, terms.shape[-1]).tolist()]
    return np.array(out, dtype=np.int32).reshape(terms.shape[:-1])


@lowers("bmm.default", "mm.default", "matmul.default")
def _matmul(low: Lowering, node: Node, a, b):
    if low.over_envs(low.tensor(a).shape, -1) or low.over_envs(low.tensor(b).shape, -2):
        return low.poisoned(node, "sums over all environments")
    return _product(low, low.value(a, "f"), low.value(b, "f"))


@lowers("mv.default", "dot.default")
def _mv(low: Lowering, node: Node, a, b):
    if low.over_envs(low.tensor(b).shape, 0):
        return low.poisoned(node, "sums over all environments")
    x, y = low.value(a, "f"), low.value(b, "f")
    out = _product(low, x if x.ndim == 2 else x[None], y[:, None])[..., 0]
    return out if x.ndim == 2 else out[0]


@lowers("addmm.default", "baddbmm.default")
def _addmm(low: Lowering, node: Node, bias, a, b, beta=1, alpha=1):
    product = _matmul(low, node, a, b)
    if isinstance(product, list) or beta != 1 or alpha != 1:
        return low.poisoned(node, "is scaled or crosses environments")
    return low.map(lambda v, w: low.program.op("add", v, w), low.value(bias, "f"), product)


@lowers("linalg_solve_triangular.default")
def _solve(low: Lowering, node: Node, a, b, upper, left=True, unitriangular=False):
    if not left:
        return low.poisoned(node, "solves from the right, which has no rule, used")
    p = low.program
    x, y = low.value(a, "f"), low.value(b, "f").copy()
    n = x.shape[-1]
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    x, y = np.broadcast_to(x, batch + x.shape[-2:]), np.broadcast_to(y, batch + y.shape[-2:]).copy()
    for i in reversed(range(n)) if upper else range(n):
        for j in range(i + 1, n) if upper else range(i):
            y[..., i, :] = low.map(
                lambda r, c, s: p.op("sub", r, p.op("mul", c, s)), y[..., i, :], x[..., i, j, None], y[..., j, :]
            )
        if not unitriangular:
            y[..., i, :] = low.map(lambda r, c: p.op("div", r, c), y[..., i, :], x[..., i, i, None])
    return y
