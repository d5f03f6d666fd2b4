"""A function of tensors as a straight line of calls: recorded once, replayed without Python's and autograd's part.

What CUDA graphs are on a GPU. At the sizes of on-policy learning half of an update is no arithmetic: modules,
autograd's nodes, tensors that come and go. A recording holds every operation that reached torch's dispatcher, of a
backward pass too, with its operands where they lay; a replay runs the same operations on the same memory, bitwise
identical. Views and constants cost nothing then.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from marl.capture.stages import Recorded, staged
from marl.native import library

KNOWN = ("torch", "marl", "agents")  # packages whose modules compute by nothing but tensors
EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
CONSTANT = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}
IN_PLACE = {"clone": Tensor.copy_, "randn_like": Tensor.normal_}  # what does the same in place, with fewer calls
PATIENCE = 3  # calls of one kind before it is recorded: a rest of an epoch or a short run is not worth it
GENERATOR = -1  # stands for the state of torch's generator among the places in memory
GRAPHS = 4  # kinds of calls that are kept
LONGEST = 3000  # calls in a graph; where there are more, a call's price is not what the time goes into


class CaptureError(Exception):
    """The function cannot be replayed; the message says why."""


class Recorder(TorchDispatchMode):
    """Runs operations as usual and notes the calls that repeat them, each writing where the first one wrote.

    What depends on constants alone is one itself, and not computed again.

    fixed: memory that must not be written. inputs: what changes from call to call, beside that. Raises CaptureError,
    from within what is recorded.
    """

    def __init__(self, fixed: set[int], inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.fixed = fixed
        self.varying = fixed | {_memory(value) for value in inputs}
        self.calls: list[Recorded] = []
        self.kept_alive: list[Any] = []  # so that no memory is given to another tensor
        self.written: set[int] = set()

    def __enter__(self) -> "Recorder":
        library.record_calls(self.note_kernel)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        library.record_calls(None)
        super().__exit__(*raised)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random and any(isinstance(value, torch.Generator) for value in tree_leaves((args, kwargs))):
            raise CaptureError(f"{func} draws from a generator of its own")
        written = {_memory(t) for t in _targets(func, args, kwargs)}
        if written & self.fixed:
            raise CaptureError(f"{func} writes to a parameter or buffer")
        self.written |= written
        out = func(*args, **kwargs)
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        name = func.overloadpacket.__name__
        sources, places = {_memory(t) for t in read}, {_memory(t) for t in outputs} | written
        if random:  # draws keep their order
            sources, places = sources | {GENERATOR}, places | {GENERATOR}
        if func._schema.is_mutable:
            in_place = partial(getattr(Tensor, name, func) if name.endswith("_") else func, *args, **kwargs)
            self.note(in_place, sources, places, outputs)
        elif not outputs:
            raise CaptureError(f"{func} brings a number to the host")
        elif name in EMPTY or {_memory(t) for t in outputs} <= sources:
            self.kept_alive.append((read, outputs))  # a view lies where it lay
        elif name in IN_PLACE:
            self.note(partial(IN_PLACE[name], out, *args[: name == "clone"]), sources, places, outputs)
        elif random:
            self.note(partial(_copied, func, args, kwargs, out), sources, places, outputs)
        elif name in CONSTANT or not self.varying & sources:
            for target in outputs:
                self.note(_Refill(target), set(), {_memory(target)})
            return out
        else:
            self.note(_into(func, args, kwargs, out), sources, places, outputs)
        if random or self.varying & sources:
            self.varying |= places - {GENERATOR}
        return out

    def note(self, call: Callable[[], object], reads: set[int], writes: set[int], keep: Any = ()) -> None:
        """Repeat this call in a replay; `keep` is what it reads or writes beside its arguments."""
        self.calls.append(Recorded(call, reads, writes))
        self.kept_alive.append(keep)

    def note_kernel(self, call: library.KernelCall) -> None:
        """Repeat a call that torch does not see: what it writes is constant no more."""
        touched = call.reads, call.writes
        reads, writes = ({_memory(t) for t in tree_leaves(of) if isinstance(t, Tensor)} for of in touched)
        self.note(call, reads, writes, touched)
        self.varying |= writes

    def repeated(self) -> list[Callable[[], object]]:
        """The calls in stages, without those that write what no call changes."""
        return staged(
            [c for c in self.calls if not isinstance(c.call, _Refill) or _memory(c.call.target) in self.written]
        )


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
            value = args[at] if at < len(args) else kwargs.get(argument.name)
            yield from (t for t in tree_leaves(value) if isinstance(t, Tensor))


def _into(func: Any, args: tuple, kwargs: dict, out: Any) -> Callable[[], object]:
    """A call that writes what `func` gives into `out`: the fastest of those whose result is bitwise identical."""
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
    """Whether two tensors hold the same numbers; a NaN is like any other, 0.0 like -0.0."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


class CapturedGraph:
    """What was recorded of one kind of call: `run` writes its results where they lay when it was recorded."""

    def __init__(self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], fixed: set[int]) -> None:
        """Record. Raises CaptureError."""
        self.inputs = [value.clone() for value in inputs]
        recorder = Recorder(fixed, self.inputs)
        with recorder:
            results = function(*self.inputs)
        self.results = [value.detach() for value in results]
        recorder.written |= {_memory(value) for value in self.results}  # the caller may change them
        self.calls, self.kept_alive = recorder.repeated(), recorder.kept_alive
        if len(self.calls) > LONGEST:
            raise CaptureError(f"it makes {len(self.calls)} calls")
        self.runs = 0

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results, in the same memory every time."""
        if torch.is_grad_enabled():  # not at each of a rollout's steps: the switch costs as much as a small layer
            with torch.no_grad():
                return self.run(inputs)
        torch._foreach_copy_(self.inputs, inputs)
        for call in self.calls:
            call()
        self.runs += 1
        return self.results


class GraphedFunction:
    """A function of tensors that is replayed from its fourth call of a kind on.

    A kind is the inputs' shapes and `key`, which must name everything else that decides what is computed. A replay is
    compared with the function itself on its 1st, 2nd, 4th, 8th … call; where it differs there is no replay any
    more, and a warning if that was not so from the first. Results lie in the same memory every time.

    Args:
        function: gives a sequence of tensors.
        module: whose parameters and buffers it reads; it must not write them but for parameters' gradients.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], module: nn.Module) -> None:
        self.function, self.module = function, module
        self.counts: dict[Hashable, int] = {}
        self.graphs: dict[Hashable, CapturedGraph] = {}
        self.why = ""  # there are no replays

    def __call__(self, inputs: Sequence[Tensor], key: Hashable = ()) -> Sequence[Tensor]:
        if self.why or torch._C._len_torch_dispatch_stack():  # modes want to see every operator
            return self.function(*inputs)
        kind = (key, *[value.shape for value in inputs], torch.get_num_threads())
        graph = self.graphs.get(kind)
        if graph is not None and graph.runs & (graph.runs - 1):
            return graph.run(inputs)
        generator = torch.get_rng_state()
        results = self.function(*inputs)
        if graph is not None:
            return self._held(graph, inputs, results, generator)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] >= PATIENCE and len(self.graphs) < GRAPHS and all(x.is_contiguous() for x in inputs):
            self._record(kind, inputs)
        return results

    def _record(self, kind: Hashable, inputs: Sequence[Tensor]) -> None:
        generator = torch.get_rng_state()
        try:
            if _hooked(self.module) or torch.is_anomaly_enabled():
                raise CaptureError("hooks or anomaly detection look at it")
            fixed = {_memory(t) for t in (*self.module.parameters(), *self.module.buffers())}
            self.graphs[kind] = CapturedGraph(self.function, inputs, fixed)
        except CaptureError as error:
            self.why = str(error)
        torch.set_rng_state(generator)

    def _held(
        self, graph: CapturedGraph, inputs: Sequence[Tensor], expected: Sequence[Tensor], generator: Tensor
    ) -> Sequence[Tensor]:
        """The results of a replay, if they are those `expected`, which were computed beginning with `generator`."""
        after = torch.get_rng_state()
        torch.set_rng_state(generator)
        replayed = graph.run(inputs)
        drawn = torch.equal(after, torch.get_rng_state())
        if drawn and len(expected) == len(replayed) and all(map(same, expected, replayed)):
            return replayed
        torch.set_rng_state(after)
        self.why = "a replay differs from it"
        if graph.runs > 1:  # else there are operations with a hidden state among them, and no harm was done
            message = f"{type(self.module).__name__} is not replayed from now on: what it computes has changed unseen"
            warnings.warn(message, stacklevel=3)
        return expected


def replayable(module: nn.Module) -> bool:
    """Whether a module is on the CPU and made of parts that compute by nothing but tensors."""
    return all(p.device.type == "cpu" for p in module.parameters()) and made_of_tensors(module)


def made_of_tensors(module: nn.Module) -> bool:
    """Whether a module is made of parts that compute by nothing but tensors, and write none of their own."""
    known = all(type(m).__module__.partition(".")[0] in KNOWN for m in module.modules())
    norms = any(isinstance(m, nn.modules.batchnorm._NormBase) for m in module.modules())  # write without saying so
    return known and not norms


def _hooked(module: nn.Module) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(each, kind) for each in module.modules() for kind in kinds)
