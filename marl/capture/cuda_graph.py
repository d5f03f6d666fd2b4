"""Work on a GPU as one CUDA graph: captured once, launched without Python's part, held to the work itself.

What `marl.capture.op_graph` is on a CPU, by the same rule. A capture runs nothing; a replay reads and writes the memory
of its capture. Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import warnings
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from marl.capture.op_graph import GRAPHS, PATIENCE
from marl.core import distributed


class NotCaptured(UserWarning):
    """Work on a GPU runs operator by operator, and the warning says why; `trainer.capture=false` asks for that."""


class DeviceGraph:
    """What was captured of one kind of call: `run` writes its results where the capture put them."""

    def __init__(
        self,
        work: Callable[..., Sequence[Tensor]],
        inputs: Sequence[Tensor],
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        """Capture.

        Raises RuntimeError where something in it waits for the device, or is no work of the device.
        """
        self.inputs = [value.clone() for value in inputs]
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:  # the default one always is
            self.graph.register_generator_state(generator)
        # Other threads may allocate and ask meanwhile: NCCL's, and a loader's that pins the next minibatch.
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.results = [value.detach() for value in work(*self.inputs)]
        finally:
            torch.cuda.set_stream(stream)  # torch does so where the capture ends well
        self.runs = 0

    @torch.no_grad()
    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The results, in the same memory every time."""
        if inputs:
            torch._foreach_copy_(self.inputs, list(inputs))
        self.graph.replay()
        self.runs += 1
        return self.results


class GraphedWork:
    """Work that changes memory in place, a CUDA graph from its fourth call of a kind on.

    A kind is the inputs' shapes and `key`, which must name everything else that decides what is done. A replay is
    compared with the work itself at its first, second, third, fifth, ninth … call. The host does not wait for that:
    where the two differ the work's own results stay, on the device, and `settle` reads the verdict. Results lie in the
    same memory every time.

    Args:
        work: gives a sequence of tensors. What it reads and writes beside them stays where it lies; state on the host
            it has none.
        name: what it is, for the one sentence where it cannot be captured.
        generators: random streams that it draws from, beside the default one.
        together: all processes do the same work at the same time, and exchange tensors in it: none gives up alone.
    """

    def __init__(
        self,
        work: Callable[..., Sequence[Tensor]],
        name: str,
        generators: Sequence[torch.Generator] = (),
        together: bool = False,
    ) -> None:
        self.work, self.name, self.generators, self.together = work, name, tuple(generators), together
        self.counts: dict[Hashable, int] = {}
        self.graphs: dict[Hashable, DeviceGraph] = {}
        self.places: tuple[int, ...] = ()  # where the memory lies that the graphs know
        self.verdicts: list[Tensor] = []
        self.why = ""  # there are no replays

    def __call__(self, inputs: Sequence[Tensor], state: Sequence[Tensor], key: Hashable = ()) -> Sequence[Tensor]:
        """Do the work once.

        Args:
            inputs: tensors that change from call to call, wherever they lie.
            state: all memory that the work writes and that is read after it, without gradients.
            key: see the class.
        """
        if self.why or torch._C._len_torch_dispatch_stack():
            return self.work(*inputs)
        kind = _kind(inputs, key)
        graph = self._graphs(state).get(kind)
        if graph is not None:
            checked = graph.runs & (graph.runs - 1) == 0
            return self._held(graph, inputs, state) if checked else graph.run(inputs)
        results = self.work(*inputs)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] >= PATIENCE and len(self.graphs) < GRAPHS:
            self._capture(kind, inputs)
        return results

    def has_room(self, inputs: Sequence[Tensor], key: Hashable = ()) -> bool:
        """Whether calls of this kind are or may become a graph, as far as the number of graphs goes."""
        return len(self.graphs) < GRAPHS or _kind(inputs, key) in self.graphs

    def is_due(self, inputs: Sequence[Tensor], state: Sequence[Tensor], key: Hashable = ()) -> bool:
        """Whether a call would be a replay, or captures.

        Where it is neither it is counted, as one whose work is done in another way; the arguments are those of a call.
        """
        kind = _kind(inputs, key)
        if self.why or kind in self._graphs(state):
            return not self.why
        if len(self.graphs) >= GRAPHS:
            return False
        count = self.counts.get(kind, 0) + 1
        if count < PATIENCE:
            self.counts[kind] = count
        return count >= PATIENCE

    def _graphs(self, state: Sequence[Tensor]) -> dict[Hashable, DeviceGraph]:
        """Those of memory that still lies where it lay; a checkpoint that was loaded brings other tensors."""
        places = tuple(value.data_ptr() for value in state)
        if places != self.places:
            self.places = places
            self.graphs.clear()
            self.counts.clear()
        return self.graphs

    def _capture(self, kind: Hashable, inputs: Sequence[Tensor]) -> None:
        reason = ""
        try:
            if torch.is_anomaly_enabled():
                raise RuntimeError("anomaly detection looks at it")
            self.graphs[kind] = DeviceGraph(self.work, inputs, self.generators)
        except RuntimeError as error:
            reason = str(error.__context__ or error).split("\n")[0]  # what broke it, not that it is broken
        if self._anywhere(bool(reason)):
            self._give_up(f"{self.name}: no CUDA graph, {reason or 'another process cannot capture it'}")

    def _anywhere(self, wrong: bool) -> bool:
        """Whether something is wrong here, or in another process that does this work too."""
        return bool(distributed.largest(int(wrong))) if self.together else wrong

    def _give_up(self, why: str) -> None:
        self.why = why
        self.graphs.clear()
        warnings.warn(why, NotCaptured, stacklevel=2)

    def _held(self, graph: DeviceGraph, inputs: Sequence[Tensor], state: Sequence[Tensor]) -> list[Tensor]:
        """The results of a replay where they are the work's own, else those."""
        state, before, seeds = list(state), torch._foreach_clone(list(state)), self._seeds()
        expected = [value.detach().clone() for value in self.work(*inputs)]
        after, drawn = torch._foreach_clone(state), self._seeds()
        torch._foreach_copy_(state, before)
        self._seed(seeds)
        ours, theirs = [*state, *graph.run(inputs)], [*after, *expected]
        equal = torch.stack([_equal(a, b) for a, b in zip(ours, theirs, strict=True)]).all()
        for a, b in zip(ours, theirs, strict=True):
            a.copy_(torch.where(equal, a, b))
        if self._anywhere(not all(map(torch.equal, drawn, self._seeds()))):  # states of generators lie on the host
            self._seed(drawn)
            torch._foreach_copy_(ours, theirs)
            self._give_up(f"{self.name}: no CUDA graph, a replay draws other random numbers")
        self.verdicts.append(equal)
        return ours[len(state) :]

    def _seeds(self) -> list[Tensor]:
        return [torch.cuda.get_rng_state(), *[generator.get_state() for generator in self.generators]]

    def _seed(self, states: list[Tensor]) -> None:
        torch.cuda.set_rng_state(states[0])
        for generator, state in zip(self.generators, states[1:], strict=True):
            generator.set_state(state)

    def settle(self) -> None:
        """Read whether replays were the work's own results so far; waits for the device where one was compared."""
        verdicts, self.verdicts = self.verdicts, []
        if verdicts and self._anywhere(not bool(torch.stack(verdicts).all())):
            self._give_up(f"{self.name}: no CUDA graph any more, a replay differs from the work itself")


def _kind(inputs: Sequence[Tensor], key: Hashable) -> tuple:
    return (key, *[(value.shape, value.dtype) for value in inputs])


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """Bool [] on the device: whether two tensors hold the same numbers; a NaN is like any other."""
    return ((a == b) | ((a != a) & (b != b))).all()
