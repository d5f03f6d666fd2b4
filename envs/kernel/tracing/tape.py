"""Records every tensor operation of a piece of PyTorch code, on real values, as a flat list.

Unlike a symbolic trace, a tape has the value of every intermediate result: random draws, constants and branches are
judged by what they are, and a lowered program can be compared with the tape node by node.
"""

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from marl.core.errors import CannotCompile


class Refusal(CannotCompile):
    """The step can't become a kernel; the message is one sentence that says why."""


class ConstantChanged(Exception):
    """A loaded state differs from what the kernel was specialised on; a general kernel must be built instead."""


@dataclass(frozen=True)
class Ref:
    """The tensor number `index` of a tape."""

    index: int

    def __repr__(self) -> str:
        return f"%{self.index}"


@dataclass
class Node:
    """One operation: `name` as "aten.add.Tensor", tensors in `args` and `kwargs` replaced by Ref."""

    name: str
    args: tuple
    kwargs: dict
    outs: list  # Ref, or None for a result that is no tensor
    where: str = ""  # "file:line" of the simulator's code that asked for it


@dataclass
class Tape:
    """Operations in the order in which they ran, and every tensor they touched (kept alive: identities stay unique)."""

    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    consts: dict[int, Tensor] = field(default_factory=dict)  # tensor number -> its value when first seen
    aliases: dict[int, int] = field(default_factory=dict)  # tensor number -> an older tensor in whose memory it lies
    inputs: dict[int, tuple] = field(default_factory=dict)  # tensor number -> what it is, e.g. ("state", "path")
    tainted: set[int] = field(default_factory=set)  # tensors whose value depends on an input
    numbers: dict[int, int] = field(default_factory=dict)  # id(tensor) -> tensor number
    storages: dict[int, list[int]] = field(default_factory=dict)  # memory -> numbers of the tensors that lie in it
    shared: set[int] = field(default_factory=set)  # tensors whose value depends on one that all environments share
    noise: list[tuple] = field(default_factory=list)  # (operation, arguments, tensor drawn) of each random draw

    def add(self, tensor: Tensor) -> int:
        """The number of `tensor`, given on first sight."""
        number = self.numbers.get(id(tensor))
        if number is None:
            number = len(self.tensors)
            self.tensors.append(tensor)
            self.numbers[id(tensor)] = number
            self.storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(number)
        return number

    def neighbours(self, tensor: Tensor) -> list[int]:
        """Numbers of the known tensors that share memory with `tensor`."""
        return self.storages.get(tensor.untyped_storage().data_ptr(), []) if tensor.numel() else []

    def input(self, tensor: Tensor, what: tuple) -> int:
        """Declares a tensor to be an input; two names for one tensor are one input."""
        number = self.add(tensor)
        self.inputs.setdefault(number, what)
        self.tainted.add(number)
        if what[0] == "shared":
            self.shared.add(number)
        return number

    def depends(self, tensor: Tensor) -> bool:
        """Whether the value of `tensor` depends on an input."""
        return self.numbers.get(id(tensor)) in self.tainted


RANDOM = {
    "aten.randn.default",
    "aten.rand.default",
    "aten.randint.default",
    "aten.randint.low",
    "aten.uniform_.default",
    "aten.normal_.default",
    "aten.randn_like.default",
    "aten.rand_like.default",
    "aten.randint_like.default",
    "aten.randint_like.low_dtype",
    "aten.bernoulli_.float",
    "aten.exponential_.default",
    "aten.random_.default",
    "aten.random_.from",
    "aten.normal.float_float",
}
RANDOM_REFUSED = {"aten.randperm.default", "aten.multinomial.default", "aten.bernoulli.default"}
LEAVES = {"aten._local_scalar_dense.default", "aten.item.default", "aten.is_nonzero.default", "aten.equal.default"}


@functools.cache
def _about(func: OpOverload) -> tuple[str, bool, bool]:
    """(name, whether the result's size may follow the values, whether an argument is written to) of an operation."""
    return str(func), torch.Tag.dynamic_output_shape in func.tags, func._schema.is_mutable


def _mapped(function, value):
    """function(leaf) throughout an operation's arguments: torch's tree_map, in a fraction of its time."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([_mapped(function, item) for item in value])
    if kind is dict:
        return {key: _mapped(function, item) for key, item in value.items()}
    return function(value)


def _selects(name: str, args: tuple) -> bool:
    """Whether the result's size follows the values: masks do, indices of numbers do not."""
    return name != "aten.index.Tensor" or any(
        isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8) for item in args[1]
    )


class Recorder(TorchDispatchMode):
    """Writes each operation that reaches the dispatcher to a tape while it runs as usual."""

    def __init__(self, tape: Tape, locate=None):
        super().__init__()
        self.tape, self.locate = tape, locate or (lambda: "")

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch would else import its compiler here, which takes two seconds and is never used."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Runs the operation, then records it."""
        kwargs = kwargs or {}
        name, dynamic, mutated = _about(func)
        tape = self.tape
        tainted, shared = [False], [False]

        def to_ref(value):
            if not isinstance(value, Tensor):
                return value
            number = tape.numbers.get(id(value))
            if number is None:  # first seen: another view of known memory, or a constant
                near = tape.neighbours(value)
                number = tape.add(value)
                if near:
                    tape.aliases[number] = near[0]
                    if any(n in tape.tainted for n in near):
                        tape.tainted.add(number)
                else:
                    tape.consts[number] = value.detach().clone()
            tainted[0] |= number in tape.tainted
            shared[0] |= number in tape.shared
            return Ref(number)

        ref_args, ref_kwargs = _mapped(to_ref, args), _mapped(to_ref, kwargs)
        if name in LEAVES and tainted[0]:
            raise Refusal(f"the step reads a number out of a tensor at {self.locate()}")
        if tainted[0] and dynamic and _selects(name, args):
            raise Refusal(f"the step selects a varying number of environments at {self.locate()}")
        if name in RANDOM_REFUSED or name.startswith("aten.multinomial"):
            raise Refusal(f"the step draws from {name} at {self.locate()}")
        if name in RANDOM and kwargs.get("generator") is not None:
            raise Refusal(f"the step draws from a generator of its own at {self.locate()}")
        out = func(*args, **kwargs)
        random = name in RANDOM

        def to_out(value):
            if not isinstance(value, Tensor):
                return None
            number = tape.add(value)
            if random or tainted[0]:
                tape.tainted.add(number)
            if shared[0]:
                tape.shared.add(number)
            return Ref(number)

        outs = [to_out(v) for v in (out if isinstance(out, (list, tuple)) else (out,))]
        if mutated and tainted[0]:  # a constant that received an input's value is a constant no more
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                    self._taint_storage(value)
        if random:
            tape.noise.append((name, ref_args, dict(kwargs), out.detach().clone()))
            tape.nodes.append(Node("aten.noise", (len(tape.noise) - 1, *ref_args), {}, outs, self.locate()))
            if mutated:
                self._taint_storage(out)
        else:
            tape.nodes.append(Node(name, ref_args, ref_kwargs, outs, self.locate()))
        return out

    def _taint_storage(self, tensor: Tensor) -> None:
        """Marks every known tensor that shares memory with `tensor`."""
        self.tape.tainted.update(self.tape.neighbours(tensor))
