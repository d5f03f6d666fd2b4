"""Replays a tape on arrays of scalar values: from tensor operations of E environments to a program for one.

A tensor [E, a, b] is a NumPy array [1, a, b] of value numbers: wherever torch's shape has a factor E, the array's has
a factor 1, so that views, broadcasting and in-place writes are NumPy's own. An operation that would let environments
meet yields a *poisoned* value, refused by name only if an output needs it (unused asserts cost nothing).
"""

import numpy as np
import torch

from envs.kernel.ir.program import Program
from envs.kernel.tracing.tape import LEAVES, Node, Ref, Refusal, Tape

KINDS = {
    torch.float32: "f",
    torch.bool: "b",
    torch.int64: "i",
    torch.int32: "i",
    torch.uint8: "i",
    torch.int16: "i",
    torch.int8: "i",
    torch.float64: "d",
}


class Rules(dict):
    """How operations are lowered: {"aten.add.Tensor": function(Lowering, node, *args, **kwargs)}."""

    def lowers(self, *names: str):
        """Enters the decorated function under the names of torch operations ("add.Tensor" for aten.add.Tensor)."""

        def enter(function):
            for name in names:
                self[f"aten.{name}"] = function
            return function

        return enter


class Lowering:
    """The state of one replay: the program so far and the array of every tensor on the tape.

    num_envs is the tape's E, a prime that no other size is a multiple of.
    rules: how operations are lowered. constants: {(state path, field): number} of state fields that never change and
    are folded in.
    """

    def __init__(self, tape: Tape, num_envs: int, rules: Rules, constants: dict[tuple, float] | None = None) -> None:
        self.tape, self.num_envs, self.rules = tape, num_envs, rules
        self.constants = constants or {}
        self.program = Program()
        self.arrays: dict[int, np.ndarray] = {}
        self.tables: dict[str, list] = {}  # large state indexed by data: path -> [last store, loads since]
        self.where = ""
        for number, what in tape.inputs.items():
            if number not in self.arrays:
                self.arrays[number] = self._input(number, what)

    # ---- shapes and kinds

    def shape(self, torch_shape) -> tuple[int, ...]:
        """torch's shape with the factor E taken out."""
        return tuple(n // self.num_envs if n and n % self.num_envs == 0 else n for n in torch_shape)

    def over_envs(self, torch_shape, dim: int) -> bool:
        """Whether a dimension of a tensor holds the environments."""
        return len(torch_shape) > 0 and torch_shape[dim] > 0 and torch_shape[dim] % self.num_envs == 0

    def kind(self, dtype: torch.dtype) -> str:
        """ "f", "b" or "i"; anything else is refused."""
        kind = KINDS.get(dtype)
        if kind is None:
            raise Refusal(f"the step computes in {dtype} at {self.where}")
        return "f" if kind == "d" else kind

    def tensor(self, ref: Ref) -> torch.Tensor:
        """The traced tensor: its shape and dtype hold, its values are those of the trace."""
        return self.tape.tensors[ref.index]

    # ---- arrays

    def _input(self, number: int, what: tuple) -> np.ndarray:
        tensor = self.tape.tensors[number]
        for other in self.tape.neighbours(tensor):
            array = self.arrays.get(other)
            if array is not None:
                return self._alias(number, other)
        shape, kind = self.shape(tensor.shape), self.kind(tensor.dtype)
        ids = np.empty(shape, dtype=np.int32)
        flat = ids.reshape(-1)
        for field in range(flat.size):
            number = self.constants.get((*what, field)) if self.constants else None
            flat[field] = (
                self.program.input((*what, field), kind) if number is None else self.program.const(number, kind)
            )
        return ids

    def _alias(self, number: int, base: int) -> np.ndarray:
        """The array of a tensor that is another view of a known tensor's memory."""
        tensor, known = self.tape.tensors[number], self.tape.tensors[base]
        array = self.array(Ref(base))
        same = (tensor.shape, tensor.stride(), tensor.storage_offset())
        if same == (known.shape, known.stride(), known.storage_offset()):
            return array
        position = {}
        index = torch.arange(known.numel()).reshape(known.shape)
        places = torch.as_strided(torch.arange(_extent(known)), known.shape, known.stride()).reshape(-1)
        for place, element in zip(places.tolist(), index.reshape(-1).tolist(), strict=True):
            position.setdefault(place + known.storage_offset(), element)
        cells = torch.as_strided(torch.arange(_extent(tensor)), tensor.shape, tensor.stride()) + tensor.storage_offset()
        elements = [position.get(p) for p in cells.reshape(-1).tolist()]
        if None in elements:
            raise Refusal("the step's state holds two different views of one memory")
        full = np.broadcast_to(np.asarray(array), self.shape(known.shape))
        spread = np.broadcast_to(full.reshape(self._split(known.shape, 1)), self._split(known.shape, self.num_envs))
        ids = spread.reshape(-1)[np.array(elements, dtype=np.int64)].reshape(tuple(tensor.shape))
        ids = self._first_rows(ids, tensor.shape).copy()
        ids.flags.writeable = False  # a write would have to reach the other view
        return ids

    def _split(self, torch_shape, envs: int) -> tuple[int, ...]:
        out: list[int] = []
        for n in torch_shape:
            out += [envs, n // self.num_envs] if n and n % self.num_envs == 0 else [n]
        return tuple(out)

    def _first_rows(self, values: np.ndarray, torch_shape) -> np.ndarray:
        """The part of an array of torch's full shape that belongs to environment 0; all must hold the same."""
        view = values.reshape(self._split(torch_shape, self.num_envs))
        axis = 0
        for n in torch_shape:
            if n and n % self.num_envs == 0:
                first = np.take(view, [0], axis=axis)
                if not np.array_equal(np.broadcast_to(first, view.shape), view, equal_nan=view.dtype.kind == "f"):
                    raise ValueError("environments differ")
                view, axis = first, axis + 1
            axis += 1
        return view.reshape(self.shape(torch_shape))

    def constant(self, value: torch.Tensor) -> np.ndarray:
        """A constant tensor as an array; one that differs between environments is poisoned."""
        kind = self.kind(value.dtype)
        numbers = value.detach().cpu().numpy()
        try:
            numbers = self._first_rows(numbers, value.shape)
        except ValueError:
            return self.full(
                self.shape(value.shape),
                self.program.poison(f"a constant that differs between environments at {self.where}", kind),
            )
        if kind == "i" and numbers.size and np.abs(numbers.astype(np.float64)).max() > 2**24:
            raise Refusal(f"the step holds an integer above 2^24 at {self.where}")
        return self.map(lambda n: self.program.const(n, kind), numbers)

    def array(self, ref: Ref) -> np.ndarray:
        """The array of a tensor: computed before, a constant, or a view of known memory."""
        array = self.arrays.get(ref.index)
        if array is None:
            if ref.index in self.tape.aliases:
                array = self._alias(ref.index, self.tape.aliases[ref.index])
            elif ref.index in self.tape.consts:
                array = self.constant(self.tape.consts[ref.index])
            else:
                raise Refusal(f"a tensor appears out of nowhere at {self.where}")
            self.arrays[ref.index] = array
        return array

    def full(self, shape, value: int) -> np.ndarray:
        """An array that holds one value."""
        return np.full(shape, value, dtype=np.int32)

    def map(self, function, *arrays) -> np.ndarray:
        """function(number, …) on every element of broadcast arrays."""
        arrays = np.broadcast_arrays(*arrays) if len(arrays) > 1 else arrays
        flat = [a.reshape(-1).tolist() for a in arrays]
        out = np.fromiter((function(*row) for row in zip(*flat, strict=True)), dtype=np.int32, count=len(flat[0]))
        return out.reshape(arrays[0].shape)

    # ---- operands

    def value(self, operand, kind: str) -> np.ndarray:
        """A tensor or Python number as an array of values of a kind."""
        if isinstance(operand, Ref):
            return self.cast(self.array(operand), self.kind(self.tensor(operand).dtype), kind)
        if isinstance(operand, (bool, int, float)):
            return np.asarray(self.program.const(operand, kind), dtype=np.int32)
        raise Refusal(f"the step computes with {operand!r} at {self.where}")

    def cast(self, array: np.ndarray, old: str, new: str) -> np.ndarray:
        """An array converted from one kind to another, as torch's `.to` does."""
        p = self.program
        if old == new or (old, new) == ("i", "f"):
            return array if old == new else self.map(lambda v: self._as(v, "f"), array)
        if new == "b":
            return self.map(lambda v: p.op("ne", v, p.const(0, old)), array)
        if old == "b":
            one, zero = p.const(1, new), p.const(0, new)
            return self.map(lambda v: p.op("select", v, one, zero), array)
        return self.map(lambda v: self._as(p.op("trunc", v), "i"), array)

    def _as(self, value: int, kind: str) -> int:
        """The bitwise identical value under another kind."""
        p = self.program
        if p.kinds[value] == kind:
            return value
        number = p.number(value)
        return p.const(number, kind) if number is not None else p._add(kind, ("same", value))

    def operand_kind(self, *operands) -> str:
        """The kind in which torch would compute with these operands."""
        kinds = []
        for operand in operands:
            if isinstance(operand, Ref):
                kinds.append(self.kind(self.tensor(operand).dtype))
            elif operand is not None:
                kinds.append("b" if isinstance(operand, bool) else "i" if isinstance(operand, int) else "f")
        return "f" if "f" in kinds else "i" if "i" in kinds else "b"

    def result_kind(self, node: Node, out: int = 0) -> str:
        """The kind of a node's result."""
        return self.kind(self.tensor(node.outs[out]).dtype)

    def poisoned(self, node: Node, what: str) -> list[np.ndarray]:
        """Results that no environment can compute alone."""
        results = []
        for out in node.outs:
            if out is None:
                raise Refusal(f"{node.name.removeprefix('aten.')} {what} at {node.where}")
            tensor = self.tensor(out)
            kind = self.kind(tensor.dtype)
            reason = f"{node.name.removeprefix('aten.')} {what} at {node.where}"
            results.append(self.full(self.shape(tensor.shape), self.program.poison(reason, kind)))
        return results

    # ---- the replay

    def run(self) -> None:
        """Lowers every node of the tape, in order. Raises Refusal naming the operation that isn't in the table."""
        for node in self.tape.nodes:
            self.where = node.where
            if node.name in LEAVES:
                continue  # a number read out of a constant: Python has computed with it, and the tape with the result
            function = self.rules.get(node.name)
            if function is None:
                base, _, overload = node.name.rpartition(".")
                packet = base.removeprefix("aten.")
                function = self.rules.get(f"aten.{packet.rstrip('_')}.{overload}") if packet.endswith("_") else None
                if function is None:
                    function = _missing
                else:
                    function = _in_place(function)
            results = function(self, node, *node.args, **node.kwargs)
            if isinstance(results, (np.ndarray, np.generic)):
                results = [np.asarray(results)]
            for out, array in zip(node.outs, results, strict=True):
                expected = self.shape(self.tensor(out).shape)
                if array.shape != expected:
                    raise Refusal(f"{node.name} gave {array.shape} where torch gives {expected} at {node.where}")
                if out.index not in self.arrays or self.arrays[out.index] is not array:
                    self.arrays[out.index] = array


def _missing(lowering: Lowering, node: Node, *args, **kwargs):
    """An operation without a rule: harmless as long as nothing needs it."""
    return lowering.poisoned(node, "has no rule in the table of lowerings, used")


def _in_place(function):
    """The in-place form of an operation: the same result, written into the first argument's array."""

    def run(lowering: Lowering, node: Node, target, *args, **kwargs):
        array = lowering.array(target)
        results = function(lowering, node, target, *args, **kwargs)
        result = results[0] if isinstance(results, list) else results
        lowering.assign(array, result)
        return [array]

    return run


def assign(self: Lowering, array: np.ndarray, values: np.ndarray) -> None:
    """Writes values into an array that others may view."""
    if not array.flags.writeable:
        raise Refusal(f"the step writes into memory that two tensors share at {self.where}")
    array[...] = values


Lowering.assign = assign


def _extent(tensor: torch.Tensor) -> int:
    """Elements from a tensor's first to its last in memory, plus one."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
