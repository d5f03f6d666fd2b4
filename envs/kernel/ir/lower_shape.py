"""Lowerings of operations that move values without computing: views, joins, copies, factories."""

import numpy as np
import torch

from envs.kernel.ir.lowering import Lowering, Rules
from envs.kernel.tracing.tape import Node, Ref, Refusal

RULES = Rules()
lowers = RULES.lowers


def _dim(low: Lowering, ref: Ref, dim: int, extra: int = 0) -> int:
    n = low.tensor(ref).dim() + extra
    return dim % n if n else 0


@lowers("alias.default", "detach.default", "lift_fresh.default", "detach_.default", "view_as_real.default")
def _same(low: Lowering, node: Node, a):
    return low.array(a)


@lowers("clone.default", "contiguous.default", "lift_fresh_copy.default", "_to_copy.default", "to.dtype")
def _copy(low: Lowering, node: Node, a, *_, **__):
    kind = low.kind(low.tensor(a).dtype)
    return low.cast(low.array(a), kind, low.result_kind(node)).copy()


@lowers("copy_.default", "fill_.Tensor", "fill_.Scalar", "zero_.default")
def _assign(low: Lowering, node: Node, a, b=0, non_blocking=False):
    array = low.array(a)
    low.assign(array, low.value(b, low.result_kind(node)))
    return array


@lowers("view.default", "_unsafe_view.default", "reshape.default", "_reshape_alias.default")
def _view(low: Lowering, node: Node, a, *_):
    array = low.array(a)
    shape = low.shape(low.tensor(node.outs[0]).shape)
    out = array.reshape(shape)
    if array.size and not np.shares_memory(out, array):
        out.flags.writeable = False
    return out


@lowers("unsqueeze.default", "unsqueeze_.default")
def _unsqueeze(low: Lowering, node: Node, a, dim):
    return np.expand_dims(low.array(a), _dim(low, a, dim, 1))


@lowers("squeeze.default", "squeeze.dim", "squeeze.dims")
def _squeeze(low: Lowering, node: Node, a, dim=None):
    shape = low.tensor(a).shape
    dims = range(len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    return np.squeeze(low.array(a), tuple(d % len(shape) for d in dims if shape and shape[d] == 1))


@lowers("expand.default", "broadcast_to.default", "expand_as.default")
def _expand(low: Lowering, node: Node, a, *_, **__):
    return np.broadcast_to(low.array(a), low.shape(low.tensor(node.outs[0]).shape))


@lowers("permute.default")
def _permute(low: Lowering, node: Node, a, dims):
    return np.transpose(low.array(a), [d % len(dims) for d in dims])


@lowers("transpose.int")
def _transpose(low: Lowering, node: Node, a, first, second):
    return np.swapaxes(low.array(a), first, second)


@lowers("t.default", "numpy_T.default")
def _t(low: Lowering, node: Node, a):
    return low.array(a).T


@lowers("diagonal.default")
def _diagonal(low: Lowering, node: Node, a, offset=0, dim1=0, dim2=1):
    shape = low.tensor(a).shape
    if low.over_envs(shape, dim1) or low.over_envs(shape, dim2):
        return low.poisoned(node, "crosses environments")
    return np.diagonal(low.array(a), offset, dim1, dim2)


@lowers("select.int")
def _select(low: Lowering, node: Node, a, dim, index):
    shape, dim = low.tensor(a).shape, _dim(low, a, dim)
    if low.over_envs(shape, dim):
        return low.poisoned(node, "picks one environment")
    return low.array(a)[(slice(None),) * dim + (index, ...)]  # ... keeps a view of no dimensions an array


@lowers("slice.Tensor")
def _slice(low: Lowering, node: Node, a, dim=0, start=None, end=None, step=1):
    shape, dim = low.tensor(a).shape, _dim(low, a, dim)
    if low.over_envs(shape, dim):
        whole = not start and (end is None or end >= shape[dim]) and step == 1
        return low.array(a)[...] if whole else low.poisoned(node, "picks some environments")
    return low.array(a)[(slice(None),) * dim + (slice(start, end, step),)]


@lowers("unbind.int")
def _unbind(low: Lowering, node: Node, a, dim=0):
    shape, dim = low.tensor(a).shape, _dim(low, a, dim)
    if low.over_envs(shape, dim):
        return low.poisoned(node, "takes environments apart")
    array = low.array(a)
    return [array[(slice(None),) * dim + (i, ...)] for i in range(shape[dim])]


@lowers("split.Tensor", "split_with_sizes.default", "chunk.default")
def _split(low: Lowering, node: Node, a, sizes, dim=0):
    shape, dim = low.tensor(a).shape, _dim(low, a, dim)
    if low.over_envs(shape, dim):
        return low.poisoned(node, "takes environments apart")
    ends = np.cumsum([low.tensor(out).shape[dim] for out in node.outs])
    return np.split(low.array(a), ends[:-1], dim)


@lowers("stack.default")
def _stack(low: Lowering, node: Node, tensors, dim=0):
    kind = low.result_kind(node)
    return np.stack([low.value(t, kind) for t in tensors], dim)


@lowers("cat.default", "concatenate.default")
def _cat(low: Lowering, node: Node, tensors, dim=0):
    kind = low.result_kind(node)
    shape = low.tensor(node.outs[0]).shape
    if low.over_envs(shape, dim) and sum(low.tensor(t).numel() > 0 for t in tensors) > 1:
        return low.poisoned(node, "joins environments")
    parts = [low.value(t, kind) for t in tensors if low.tensor(t).dim() == len(shape)]
    return np.concatenate(parts, dim)


@lowers("constant_pad_nd.default")
def _pad(low: Lowering, node: Node, a, pads, value=0):
    """`pads`: (before, after) of the last dimension, then of the one before it, …; negative ones cut off."""
    shape = low.tensor(a).shape
    widths = [(0, 0)] * (len(shape) - len(pads) // 2) + list(zip(pads[-2::-2], pads[::-2], strict=True))
    if any(both != (0, 0) and low.over_envs(shape, d) for d, both in enumerate(widths)):
        return low.poisoned(node, "adds or takes away environments")
    array = low.array(a)
    kept = [slice(max(-b, 0), n - max(-a, 0)) for n, (b, a) in zip(array.shape, widths, strict=True)]
    wider = [(max(before, 0), max(after, 0)) for before, after in widths]
    beside = low.constant(torch.tensor(value).to(low.tensor(node.outs[0]).dtype))
    return np.pad(array[tuple(kept)], wider, constant_values=int(beside))


@lowers("repeat.default")
def _repeat(low: Lowering, node: Node, a, repeats):
    shape = low.tensor(a).shape
    array = low.array(a)
    array = array.reshape((1,) * (len(repeats) - len(shape)) + array.shape)
    sizes = (1,) * (len(repeats) - len(shape)) + tuple(shape)
    if any(r > 1 and low.over_envs(sizes, d) for d, r in enumerate(repeats)):
        return low.poisoned(node, "joins environments")
    return np.tile(array, low.shape(repeats))


@lowers("tril.default", "triu.default")
def _triangle(low: Lowering, node: Node, a, diagonal=0):
    array, kind = low.array(a).copy(), low.kind(low.tensor(a).dtype)
    keep = np.tril if "tril" in node.name else np.triu
    mask = keep(np.ones(array.shape[-2:], dtype=bool), diagonal)
    array[..., ~mask] = low.program.const(0, kind)
    return array


@lowers("flip.default")
def _flip(low: Lowering, node: Node, a, dims):
    if any(low.over_envs(low.tensor(a).shape, d) for d in dims):
        return low.poisoned(node, "reorders environments")
    return np.flip(low.array(a), dims).copy()


@lowers("roll.default")
def _roll(low: Lowering, node: Node, a, shifts, dims=()):
    if not dims or any(low.over_envs(low.tensor(a).shape, d) for d in dims):
        return low.poisoned(node, "reorders environments")
    return np.roll(low.array(a), shifts, tuple(dims))


@lowers(
    "zeros.default",
    "ones.default",
    "full.default",
    "zeros_like.default",
    "ones_like.default",
    "full_like.default",
    "empty.memory_format",
    "empty_like.default",
    "scalar_tensor.default",
    "new_zeros.default",
    "new_ones.default",
    "new_full.default",
    "new_empty.default",
    "eye.default",
    "linspace.default",
    "empty_strided.default",
    "new_empty_strided.default",
    "tril_indices.default",
    "triu_indices.default",
)
def _factory(low: Lowering, node: Node, *args, **_):
    """Constants, whatever made them: the traced value tells."""
    name, out = node.name.removeprefix("aten.").partition(".")[0], low.tensor(node.outs[0])
    kind = low.kind(out.dtype)
    shape = low.shape(out.shape)
    if "empty" in name:
        return low.full(shape, low.program.const(0, kind))
    if "zeros" in name or "ones" in name:
        return low.full(shape, low.program.const("ones" in name, kind))
    if name in ("full", "full_like", "new_full", "scalar_tensor"):
        value = args[0] if name == "scalar_tensor" else args[1 if name == "full" or name == "full_like" else 2]
        return np.broadcast_to(low.value(value, kind), shape).copy()
    return low.constant(_recompute(node))


def _recompute(node: Node) -> torch.Tensor:
    """Runs a factory again: its traced result may have been written to since."""
    packet, _, overload = node.name.removeprefix("aten.").partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)(*node.args, **node.kwargs)


@lowers("arange.default", "arange.start", "arange.start_step")
def _arange(low: Lowering, node: Node, *_, **__):
    out = _recompute(node)
    if low.over_envs(out.shape, 0):
        if out.shape[0] == low.num_envs and torch.equal(out, torch.arange(low.num_envs, dtype=out.dtype)):
            return low.full((1,), low.program.input(("environment",), low.kind(out.dtype)))
        return low.poisoned(node, "counts environments")
    return low.constant(out)


@lowers("noise")
def _noise(low: Lowering, node: Node, number, *_):
    """A random draw: an input, drawn outside of the kernel in the same order."""
    out = low.tensor(node.outs[0])
    shape, kind = low.shape(out.shape), low.kind(out.dtype)
    if shape == tuple(out.shape):
        raise Refusal(f"the step draws one random number for all environments at {node.where}")
    size = int(np.prod(shape, dtype=int))
    values = np.array([low.program.input(("noise", number, i), kind) for i in range(size)], dtype=np.int32)
    target = node.outs[0].index
    if target in low.arrays:  # drawn in place
        low.assign(low.arrays[target], values.reshape(shape))
        return low.arrays[target]
    return values.reshape(shape)
