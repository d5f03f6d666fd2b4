"""Lowerings of indexing with tensors: lookups by constants, by data (chained selects) and in large state (tables)."""

import itertools

import numpy as np

from envs.kernel.ir.lowering import Lowering, Rules
from envs.kernel.tracing.tape import Node, Refusal

RULES = Rules()
lowers = RULES.lowers

CHAIN = 64  # up to that many candidates a lookup by data is a chain of selects; beyond, the state must lie in memory


def _environment(low: Lowering, ids: np.ndarray) -> bool:
    """Whether an index counts the environments: row e reads row e."""
    return ids.size > 0 and all(low.program.ops[v] == ("input", ("environment",)) for v in ids.reshape(-1).tolist())


def _static(low: Lowering, value: int, size: int) -> int | None:
    number = low.program.number(value)
    return None if number is None else int(number) % size


def _wrapped(low: Lowering, value: int, size: int) -> int:
    """An index by data with negative positions counted from the end."""
    p = low.program
    return p.op("select", p.op("lt", value, p.const(0, "i")), p.op("add", value, p.const(size, "i")), value)


def _flat_index(low: Lowering, values: list[int], sizes: list[int]) -> int:
    p = low.program
    flat = p.const(0, "i")
    for value, size in zip(values, sizes, strict=True):
        flat = p.op("add", p.op("mul", flat, p.const(size, "i")), _wrapped(low, value, size))
    return flat


def _table(low: Lowering, cells: list[int]) -> tuple[str, list] | None:
    """(path, table) if the cells are the whole of one state tensor in order, at its latest version."""
    sources = [low.program.ops[c] for c in cells]
    if any(op[0] != "input" for op in sources):
        return None
    first = sources[0][1]
    if first[0] == "state" and all(op[1] == ("state", first[1], k) for k, op in enumerate(sources)):
        table = low.tables.setdefault(first[1], [-1, [], 0])
        return (first[1], table) if table[2] == 0 else None
    if first[0] == "cell":
        table = low.tables[first[1]]
        if all(op[1] == ("cell", first[1], table[2], k) for k, op in enumerate(sources)):
            return first[1], table
    return None


class _Place:
    """Where an index with tensors points: the array with the indexed dimensions first, and the index values."""

    def __init__(self, low: Lowering, node: Node, a, indices) -> None:
        shape, self.array = low.tensor(a).shape, low.array(a)
        self.dims = [d for d, index in enumerate(indices) if index is not None]
        ids = [low.value(index, "i") for index in indices if index is not None]
        if any(low.kind(low.tensor(i).dtype) == "b" for i in indices if i is not None):
            raise Refusal(f"the step indexes with a mask that isn't an input's at {node.where}")
        self.crosses = False
        for d, index in zip(self.dims, ids, strict=True):
            if low.over_envs(shape, d) and not _environment(low, index):
                self.crosses = True
        free = [d for d in range(self.array.ndim) if d not in self.dims]
        aligned = any(low.over_envs(shape, d) for d in self.dims)
        free_envs = any(low.over_envs(shape, d) for d in free)
        batch = any(low.tensor(i).dim() and low.over_envs(low.tensor(i).shape, 0) for i in indices if i is not None)
        if free_envs and batch and not aligned:  # [E] rows indexed by E indices would be E × E
            self.crosses = True
        self.ids = np.broadcast_arrays(*ids) if ids else []
        self.front = np.transpose(self.array, self.dims + free)  # a view: writes reach the array
        self.sizes = self.array.shape
        self.rest = self.front.shape[len(self.dims) :]
        self.adjacent = self.dims == list(range(self.dims[0], self.dims[-1] + 1))

    def arrange(self, out: np.ndarray) -> np.ndarray:
        """Puts the dimensions of the index where torch puts them."""
        if not self.adjacent or self.dims[0] == 0:
            return out
        n = self.ids[0].ndim
        return np.moveaxis(out, range(n), range(self.dims[0], self.dims[0] + n))

    def arrange_back(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `arrange`."""
        if not self.adjacent or self.dims[0] == 0:
            return values
        n = self.ids[0].ndim
        return np.moveaxis(values, range(self.dims[0], self.dims[0] + n), range(n))

    def parts(self, low: Lowering, at: tuple):
        """(static position with None where the index is data, data indices, their sizes) of one index element."""
        position, data, sizes = [], [], []
        for d, ids in zip(self.dims, self.ids, strict=True):
            value, size = int(ids[at]), self.array.shape[d]
            fixed = 0 if _environment(low, ids[at].reshape(1)) else _static(low, value, size)
            position.append(slice(None) if fixed is None else fixed)
            if fixed is None:
                data.append(value)
                sizes.append(size)
        return tuple(position), data, sizes


@lowers("index.Tensor", "_unsafe_index.Tensor")
def _index(low: Lowering, node: Node, a, indices):
    place = _Place(low, node, a, indices)
    if place.crosses:
        return low.poisoned(node, "picks environments")
    p, batch = low.program, place.ids[0].shape
    out = np.empty(batch + place.rest, dtype=np.int32)
    for at in np.ndindex(batch):
        position, data, sizes = place.parts(low, at)
        cells = place.front[position]
        if not data:
            out[at] = cells
            continue
        cells = cells.reshape((-1,) + place.rest)
        flat = _flat_index(low, data, sizes)
        if len(cells) * max(1, cells[0].size) > CHAIN:
            entry = _table(low, cells.reshape(-1).tolist()) if not place.rest else None
            if entry is None:
                return low.poisoned(node, f"looks up one of {len(cells)} values by data")
            path, table = entry
            kind = low.kind(low.tensor(a).dtype)
            value = p._add(kind, ("load", path, table[0], flat))
            table[1].append(value)
            out[at] = value
            continue
        best = cells[-1]
        for k in range(len(cells) - 2, -1, -1):
            hit = p.op("eq", flat, p.const(k, "i"))
            best = low.map(lambda v, w, hit=hit: p.op("select", hit, v, w), cells[k], best)
        out[at] = best
    return place.arrange(out)


@lowers("index_put_.default", "_index_put_impl_.default")
def _index_put(low: Lowering, node: Node, a, indices, values, accumulate=False, unsafe=False):
    place = _Place(low, node, a, indices)
    if place.crosses:
        low.assign(place.array, low.poisoned(node, "writes to some environments")[0])
        return place.array
    if not place.array.flags.writeable:
        raise Refusal(f"the step writes into memory that two tensors share at {node.where}")
    p, batch, kind = low.program, place.ids[0].shape, low.kind(low.tensor(a).dtype)
    shape = place.arrange(np.empty(batch + place.rest, dtype=np.int32)).shape
    values = place.arrange_back(np.broadcast_to(low.value(values, kind), shape))
    for at in np.ndindex(batch):
        position, data, sizes = place.parts(low, at)
        new = values[at]
        if not data:
            old = place.front[position]
            place.front[position] = low.map(lambda v, w: p.op("add", v, w), old, new) if accumulate else new
            continue
        count = int(np.prod(sizes))
        flat = _flat_index(low, data, sizes)
        if count > CHAIN:
            cells = place.front[position].reshape(-1)
            entry = _table(low, cells.tolist()) if not place.rest and not accumulate else None
            if entry is None:
                low.assign(place.array, low.poisoned(node, f"writes one of {count} values by data")[0])
                return place.array
            path, table = entry
            store = p.memory("store", kind, path, table[0], flat, int(new), *dict.fromkeys(table[1]))
            table[:] = [store, [], table[2] + 1]
            fresh = np.array([p.input(("cell", path, table[2], k), kind) for k in range(count)], dtype=np.int32)
            place.front[position] = fresh.reshape(place.front[position].shape)
            continue
        for k, combination in enumerate(itertools.product(*(range(s) for s in sizes))):
            chosen = iter(combination)
            where = tuple(next(chosen) if isinstance(x, slice) else x for x in position)
            hit = p.op("eq", flat, p.const(k, "i"))
            old = place.front[where]
            put = low.map(lambda v, w: p.op("add", v, w), old, new) if accumulate else new
            place.front[where] = low.map(lambda v, w, hit=hit: p.op("select", hit, v, w), put, old)
    return place.array


@lowers("index_select.default")
def _index_select(low: Lowering, node: Node, a, dim, index):
    indices = [None] * low.tensor(a).dim()
    indices[dim] = index
    return _index(low, node, a, indices)


@lowers("gather.default")
def _gather(low: Lowering, node: Node, a, dim, index, sparse_grad=False):
    shape = low.tensor(a).shape
    dim %= len(shape)
    if low.over_envs(shape, dim):
        return low.poisoned(node, "picks environments")
    p, array, ids = low.program, low.array(a), low.value(index, "i")
    out = np.empty(ids.shape, dtype=np.int32)
    for at in np.ndindex(ids.shape):
        row = array[at[:dim] + (slice(None),) + at[dim + 1 :]].tolist()
        fixed = _static(low, int(ids[at]), len(row))
        if fixed is not None:
            out[at] = row[fixed]
            continue
        best = row[-1]
        for k in range(len(row) - 2, -1, -1):
            best = p.op("select", p.op("eq", int(ids[at]), p.const(k, "i")), row[k], best)
        out[at] = best
    return out


@lowers("scatter_.value", "scatter_.src", "scatter.value", "scatter.src", "scatter_add_.default")
def _scatter(low: Lowering, node: Node, a, dim, index, value):
    shape, kind = low.tensor(a).shape, low.kind(low.tensor(a).dtype)
    dim %= len(shape)
    if low.over_envs(shape, dim):
        return low.poisoned(node, "picks environments")
    p, array, ids = low.program, low.array(a), low.value(index, "i")
    if node.name.startswith("aten.scatter."):
        array = array.copy()
    elif not array.flags.writeable:
        raise Refusal(f"the step writes into memory that two tensors share at {node.where}")
    values = low.value(value, kind)
    values = np.broadcast_to(values, ids.shape) if values.ndim == 0 else values
    for at in np.ndindex(ids.shape):
        for k in range(array.shape[dim]):
            where = at[:dim] + (k,) + at[dim + 1 :]
            hit = p.op("eq", int(ids[at]), p.const(k, "i"))
            new = int(values[at])
            if "add" in node.name:
                new = p.op("add", int(array[where]), new)
            array[where] = p.op("select", hit, new, int(array[where]))
    return array
