"""A loss and its gradients as a straight line of calls: recorded once, replayed without Python's and autograd's part.

What CUDA graphs are on a GPU. At the sizes of on-policy learning half of an update is no arithmetic: modules,
autograd's nodes, tensors that come and go. A recording holds every operation that reached torch's dispatcher in a
forward and a backward pass, with its operands where they lay; a replay runs the same operations on the same memory, to
the same bits. Views and constants cost nothing then.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from marl import distributed
from marl.networks import fused

KNOWN = ("torch", "marl", "agents")  # packages whose modules compute by nothing but tensors and `capture_key`
EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
CONSTANT = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
PATIENCE = 3  # passes of one kind before it is recorded: a rest of an epoch or a short run is not worth it
PROGRAMS = 4  # kinds of minibatches that are kept
LONGEST = 3000  # calls; where there are more, a call's price is not what an update's time goes into


class Refused(Exception):
    """The loss cannot be replayed; the message says why."""


class Recorder(TorchDispatchMode):
    """Runs operations as usual and notes the calls that repeat them, each writing where the first one wrote.

    fixed: memory that is the module's own and must not be written. Raises Refused, from within what is recorded.
    """

    def __init__(self, fixed: set[int]) -> None:
        super().__init__()
        self.fixed = fixed
        self.calls: list[Callable[[], object]] = []
        self.kept: list[Any] = []  # so that no memory is given to another tensor
        self.written: set[int] = set()

    def __enter__(self) -> "Recorder":
        fused.recorder = self.note
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        fused.recorder = None
        super().__exit__(*raised)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random and any(isinstance(value, torch.Generator) for value in tree_leaves((args, kwargs))):
            raise Refused(f"{func} draws from a generator of its own")
        out = func(*args, **kwargs)
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        name = func.overloadpacket.__name__
        if func._schema.is_mutable:
            written = {_memory(t) for t in _targets(func, args, kwargs)}
            if written & self.fixed:
                raise Refused(f"{func} writes to a parameter or buffer")
            self.written |= written
            self.note(partial(getattr(Tensor, name, func) if name.endswith("_") else func, *args, **kwargs), made)
        elif not made:
            raise Refused(f"{func} brings a number to the host")
        elif name in EMPTY or {_memory(t) for t in made} <= {_memory(t) for t in read}:
            self.kept.append((read, made))  # a view lies where it lay
        elif random:
            self.note(partial(_copied, func, args, kwargs, out), made)
        elif not read or name in CONSTANT:
            self.note(_Refill(out), made)
        else:
            self.note(_into(func, args, kwargs, out), made)
        return out

    def note(self, call: Callable[[], object], keep: Any = ()) -> None:
        """Repeat this call in a replay; `keep` is what it reads or writes beside its arguments."""
        self.calls.append(call)
        self.kept.append(keep)

    def line(self) -> list[Callable[[], object]]:
        """The calls, without those that write what nobody changes."""
        return [c for c in self.calls if not isinstance(c, _Refill) or _memory(c.target) in self.written]


class _Refill:
    """Puts a constant back where something else is written into it."""

    def __init__(self, target: Tensor) -> None:
        self.target, self.value = target, target.clone()

    def __call__(self) -> None:
        self.target.copy_(self.value)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _targets(func: Any, args: tuple, kwargs: dict) -> Iterator[Tensor]:
    """The tensors that an operation writes to."""
    for at, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[at] if at < len(args) else kwargs.get(argument.name)
            yield from (t for t in tree_leaves(given) if isinstance(t, Tensor))


def _into(func: Any, args: tuple, kwargs: dict, out: Any) -> Callable[[], object]:
    """A call that writes what `func` gives into `out`: the fastest of those that give the same bits."""
    packet = func.overloadpacket
    ways = [(getattr(home, packet.__name__, None), "out") for home in (torch, torch._C._nn)]
    names = [a.name for a in func._schema.arguments]
    for overload in map(partial(getattr, packet), packet.overloads()):
        targets = [a.name for a in overload._schema.arguments if a.is_out]
        if len(targets) == 1 and names == [a.name for a in overload._schema.arguments if not a.is_out]:
            ways.append((overload, targets[0]))
    scalar_loss = "loss" in packet.__name__ and isinstance(out, Tensor) and out.dim() == 0  # torch resizes `out` there
    if isinstance(out, Tensor) and not scalar_loss:
        for way, keyword in ways:
            scratch = torch.empty_like(out)
            try:
                way(*args, **kwargs, **{keyword: scratch})
            except (TypeError, RuntimeError):  # it takes other arguments, or None was found
                continue
            if same(scratch, out):
                return partial(way, *args, **kwargs, **{keyword: out})
    return partial(_copied, func, args, kwargs, out)


def _copied(func: Any, args: tuple, kwargs: dict, out: Any) -> None:
    for target, value in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
        if isinstance(value, Tensor):
            target.copy_(value)


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, to the bit but for the kind of a NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


class Program:
    """What was recorded of one kind of minibatch. `run` leaves the gradients where a backward pass would."""

    def __init__(self, loss: nn.Module, batch: Mapping, names: tuple[str, ...], values: list[Tensor]) -> None:
        """Record. Raises Refused; the gradients are those of this batch, then."""
        self.inputs = [value.clone() for value in values]
        recorder = Recorder({_memory(t) for t in (*loss.parameters(), *loss.buffers())})
        with recorder:
            outputs = loss(_rebuilt(batch, iter(self.inputs)))
            outputs["loss"].backward()
        self.names, self.outputs = tuple(outputs), [value.detach() for value in outputs.values()]
        if any(value.dim() or value.dtype != torch.float32 for value in self.outputs):
            raise Refused("its outputs are not all scalars of float32")
        self.gradients = [(p, p.grad) for p in loss.parameters() if p.grad is not None]
        recorder.written |= {_memory(gradient) for _, gradient in self.gradients}  # they are clipped where they lie
        self.calls, self.kept = recorder.line(), recorder.kept
        if len(self.calls) > LONGEST:
            raise Refused(f"it makes {len(self.calls)} calls")
        self.runs = 0

    @torch.no_grad()
    def run(self, values: list[Tensor]) -> dict[str, Tensor]:
        """The outputs of a minibatch, as tensors of their own."""
        torch._foreach_copy_(self.inputs, values)
        for call in self.calls:
            call()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        self.runs += 1
        return dict(zip(self.names, torch.stack(self.outputs).unbind(), strict=True))


class Captured:
    """Replays a loss, kind of minibatch by kind. A call returns its outputs, or None: the caller must compute them.

    A loss that can be replayed has `capture_key()`: everything that decides what it computes beside tensors and their
    shapes. Its own class must define it, since a subclass may depend on more. A replay is held to the loss itself on
    its 1st, 2nd, 4th, 8th … minibatch, to the bit; where it differs there is no replay any more, and a warning if
    that was not so from the first.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss
        self.seen: dict[Hashable, int] = {}
        self.programs: dict[Hashable, Program] = {}
        self.why = ""  # there are no replays

    def __call__(self, batch: Mapping) -> dict[str, Tensor] | None:
        if self.why:
            return None
        names, values = [], []
        _flatten(batch, names, values)
        key = (*names, *[v.shape for v in values], self.loss.capture_key(), torch.get_num_threads())
        program = self.programs.get(key)
        if program is None:
            return self._first(key, batch, tuple(names), values)
        if program.runs & (program.runs - 1):
            return program.run(values)
        return self._checked(program, batch, values)

    def _first(self, key: Hashable, batch: Mapping, names: tuple[str, ...], values: list[Tensor]) -> None:
        """Record the kind of minibatch if it has come often enough; the caller computes this one."""
        self.seen[key] = self.seen.get(key, 0) + 1
        often = self.seen[key] >= PATIENCE and len(self.programs) < PROGRAMS
        if not (often and all(value.is_contiguous() for value in values)):
            return
        generator = torch.get_rng_state()
        try:
            if _hooked(self.loss) or torch.is_anomaly_enabled():
                raise Refused("hooks or anomaly detection look at it")
            self.programs[key] = Program(self.loss, batch, names, values)
        except Refused as refused:
            self.why = str(refused)
        torch.set_rng_state(generator)
        for parameter in self.loss.parameters():
            parameter.grad = None

    def _checked(self, program: Program, batch: Mapping, values: list[Tensor]) -> dict[str, Tensor]:
        generator = torch.get_rng_state()
        outputs = self.loss(batch)
        outputs["loss"].backward()
        torch.set_rng_state(generator)  # a replay draws the same
        wanted = [*outputs.values(), *[p.grad for p, _ in program.gradients]]
        everywhere = [p.grad for p in self.loss.parameters()]
        found = program.run(values)
        got = [*found.values(), *[gradient for _, gradient in program.gradients]]
        moved = sum(g is not None for g in everywhere) != len(program.gradients) or outputs.keys() != found.keys()
        if moved or None in wanted or not all(map(same, wanted, got)):
            self.why = "a replay differs from it"
            if program.runs > 1:  # else there are operations with a hidden state among them, and no harm was done
                told = f"{type(self.loss).__name__} is computed anew from now on: what it computes has changed unseen"
                warnings.warn(told, stacklevel=2)
            for parameter, gradient in zip(self.loss.parameters(), everywhere, strict=True):
                parameter.grad = gradient
            return {name: value.detach() for name, value in outputs.items()}
        return found


def captured(trainer: Any) -> Captured | None:
    """What replays the loss of a trainer whose settings and loss permit it; else None."""
    loss = trainer.task.loss
    plain = trainer.precision == "fp32" and trainer.accumulate == 1 and trainer.held is None
    if not (trainer.capture and plain) or trainer.compile or trainer.recompute or distributed.world() > 1:
        return None
    here = all(p.device.type == "cpu" for p in loss.parameters())
    known = all(type(m).__module__.partition(".")[0] in KNOWN for m in loss.modules())
    norms = any(isinstance(m, nn.modules.batchnorm._NormBase) for m in loss.modules())  # write without saying so
    return Captured(loss) if here and known and not norms and "capture_key" in vars(type(loss)) else None


def _hooked(loss: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in loss.modules() for kind in kinds)


def _flatten(batch: Mapping, names: list[str], values: list[Tensor]) -> None:
    for name, value in batch.items():
        names.append(name)
        values.append(value) if isinstance(value, Tensor) else _flatten(value, names, values)


def _rebuilt(batch: Mapping, values: Iterator[Tensor]) -> dict:
    """The batch's nesting with other tensors at the leaves."""
    return {k: next(values) if isinstance(v, Tensor) else _rebuilt(v, values) for k, v in batch.items()}
