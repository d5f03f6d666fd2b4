"""An update on a GPU: learning rates in its memory, and loss, gradients, clipping and Adam as one CUDA graph."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from marl.capture.captured_loss import flatten, rebuilt
from marl.capture.cuda_graph import GraphedWork
from marl.core import distributed
from marl.data.epoch import Epoch, take

BAKED = ("betas", "eps", "weight_decay", "amsgrad", "maximize")  # settings of a group that a graph holds as numbers


class DeviceRates:
    """Learning rates of Adam or AdamW as numbers of the device, where a captured step reads them.

    The optimiser's groups hold plain numbers: schedules and checkpoints know no others. `in_place` writes these to the
    device and puts the device's in their place for as long as a step takes, captured or not: float32 either way.
    """

    def __init__(self, optimizer: Adam, device: torch.device) -> None:
        self.optimizer = optimizer
        self.rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]

    def write(self) -> None:
        """Bring the rates to the device; this does not wait."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            rate.fill_(group["lr"])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the optimiser steps by the device's rates."""
        groups = self.optimizer.param_groups
        saved = [(group["lr"], group["capturable"]) for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"], group["capturable"] = rate, True
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(groups, saved, strict=True):
                group["lr"], group["capturable"] = rate, capturable


def device_rates(optimizer: torch.optim.Optimizer, device: torch.device) -> DeviceRates | None:
    """Such rates, where a GPU steps by a fused Adam or AdamW of torch."""
    fused = type(optimizer) in (Adam, AdamW) and all(group.get("fused") for group in optimizer.param_groups)
    return DeviceRates(optimizer, device) if device.type == "cuda" and fused else None


class Followed(Protocol):
    """What a loss has beside, of which something follows each step: its target networks.

    updates: steps so far.
    """

    updates: int

    def count_from(self, updates: int) -> None:
        """Go on as after so many steps."""

    def follow_key(self) -> tuple:
        """What decides the next `follow` beside tensors."""

    def follow(self) -> None:
        """A step was made: it is counted, and the targets follow, by work of the device alone."""


class DeviceUpdate:
    """Minibatches trained on, one or all of an epoch as one CUDA graph where that is possible.

    Source of the rule: `marl.capture.cuda_graph.GraphedWork`. Of a `Followed` loss `epoch` has the targets follow after
    each minibatch, which is part of the graph. Its epochs may be of many kinds, most of which come seldom: before one
    is captured its minibatches are launched one by one.

    Args:
        loss: has `capture_key()` (`marl.capture.captured_loss.CapturedLoss`).
        rates: of its optimiser.
        clip: clips the gradients in place and gives their norm.
        autocast: the precision of the loss.
        together: gradients are averaged over the processes, within the graph.
    """

    def __init__(
        self,
        loss: nn.Module,
        rates: DeviceRates,
        clip: Callable[[], Tensor],
        autocast: Callable[[], AbstractContextManager],
        together: bool = False,
    ) -> None:
        self.loss, self.rates, self.clip, self.autocast, self.together = loss, rates, clip, autocast, together
        self.followed: Followed | None = loss if hasattr(loss, "follow_key") else None
        self.parameters = [p for p in loss.parameters() if p.requires_grad]
        self.names: dict[tuple, tuple] = {}  # of a kind of minibatch: the outputs; of an epoch: of each minibatch
        name = f"{type(loss).__name__} and its optimiser's step"
        self.graphed = GraphedWork(self._work, name, together=together)
        self.epochs = GraphedWork(self._epoch, f"an epoch of {name}", together=together)
        self.scheduled: tuple[list, Tensor] | None = None  # the rates of an epoch's steps, on the host and here
        self.optimizer_state: object = None
        self.state: list[Tensor] = []

    def __call__(self, batch: Mapping) -> tuple[dict[str, Tensor], Tensor]:
        """The loss's outputs, and the norm of the gradients before they were clipped; the step is made."""
        values = self._taken_apart(batch)
        self.rates.write()
        *outputs, norm = torch._foreach_clone(list(self.graphed(values, self._memory(), self.key)))
        return dict(zip(self.names[self.key], outputs, strict=True)), norm

    def epoch(self, epoch: Epoch, rates: list[list[float]]) -> list[tuple[tuple[str, ...], Tensor]]:
        """Train on the minibatches of an epoch, with these rates of each step, by group.

        Of each minibatch the names of the loss's numbers, and float32 [names + 1]: those, and the gradients' norm.
        """
        values = self._taken_apart(epoch.rows, epoch.size)
        self.begin = 0 if self.followed is None else self.followed.updates
        self.key = (*self.key, epoch.count, *self._turns(epoch.count))
        device = self.rates.rates[0].device
        if self.scheduled is None or self.scheduled[0] != rates:
            self.scheduled = rates, torch.tensor(rates).pin_memory().to(device, non_blocking=True)
        whole = epoch.order is None
        inputs = [self.scheduled[1], torch.arange(0, device=device) if whole else epoch.order, *values]
        if not self._is_one(inputs):
            return self._one_by_one(epoch, rates)
        (figures,) = self.epochs(inputs, self._memory(), self.key)
        if self.followed is not None:  # a replay runs nothing of the host's
            self.followed.count_from(self.begin + epoch.count)
        names = self.names[self.key]
        return list(zip(names, figures.clone().split([len(each) + 1 for each in names]), strict=True))

    def _is_one(self, inputs: list[Tensor]) -> bool:
        """Whether this epoch is one piece of work, which is or may become a graph."""
        if self.followed is None:
            return self.epochs.has_room(inputs, self.key)
        if self.graphed.why and not self.epochs.graphs:  # what cannot be captured alone cannot be with others either
            return False
        return self.epochs.is_due(inputs, self._memory(), self.key)

    def _turns(self, count: int) -> list:
        """What decides so many steps of a followed loss and what follows them, beside tensors."""
        if self.followed is None:
            return []
        keys = []
        for step in range(count):
            self.followed.count_from(self.begin + step)
            keys.append((self.loss.capture_key(), self.followed.follow_key()))
        self.followed.count_from(self.begin)
        return keys

    def _one_by_one(self, epoch: Epoch, rates: list[list[float]]) -> list[tuple[tuple[str, ...], Tensor]]:
        """The same, a graph for each minibatch."""
        given, groups = [], self.rates.optimizer.param_groups
        scheduled = [group["lr"] for group in groups]
        for batch, step in zip(epoch, rates, strict=True):
            for group, rate in zip(groups, step, strict=True):
                group["lr"] = rate
            outputs, norm = self(batch)
            given.append((tuple(outputs), torch.stack([value.float() for value in (*outputs.values(), norm)])))
            if self.followed is not None:
                self.followed.follow()
        for group, rate in zip(groups, scheduled, strict=True):
            group["lr"] = rate
        return given

    def _taken_apart(self, batch: Mapping, size: int = 0) -> list[Tensor]:
        """The tensors of a minibatch, or of the rows of minibatches of a size; `key` says all else that decides."""
        names: list[str] = []
        values: list[Tensor] = []
        flatten(batch, names, values)
        settings = [tuple(group.get(name) for name in BAKED) for group in self.rates.optimizer.param_groups]
        self.batch, self.size, self.key = batch, size, (*names, self.loss.capture_key(), *settings, size)
        return values

    def _memory(self) -> list[Tensor]:
        """Weights, buffers and moments: what a step writes."""
        optimizer = self.rates.optimizer
        known = sum(len(each) for each in optimizer.state.values())
        if optimizer.state is not self.optimizer_state or known != self.known:
            self.optimizer_state, self.known = optimizer.state, known
            moments = [value for each in optimizer.state.values() for value in each.values()]
            self.state = [*map(Tensor.detach, self.loss.parameters()), *self.loss.buffers(), *moments]
        return self.state

    def _epoch(self, rates: Tensor, order: Tensor, *values: Tensor) -> list[Tensor]:
        rows, figures, names = rebuilt(self.batch, iter(values)), [], []
        self._share()
        if self.followed is not None:
            self.followed.count_from(self.begin)
        for step, index in zip(rates.unbind(), order.split(self.size), strict=True):
            torch._foreach_copy_(self.rates.rates, list(step.unbind()))
            given, outputs = self._train(take(rows, index) if len(index) else rows)
            figures += [value.float() for value in outputs]
            names.append(given)
            if self.followed is not None:
                self.followed.follow()
        self.names[self.key] = tuple(names)  # not before: a capture that fails midway leaves what was there
        return [torch.stack(figures)]

    def _share(self) -> None:
        """Buffers are the first process's, as DistributedDataParallel has it before every pass."""
        if self.together:
            distributed.share_(list(self.loss.buffers()))

    def _work(self, *values: Tensor) -> list[Tensor]:
        self._share()
        self.names[self.key], outputs = self._train(rebuilt(self.batch, iter(values)))
        return outputs

    def _train(self, batch: Mapping) -> tuple[tuple[str, ...], list[Tensor]]:
        """A step; the names of what the loss gave, and that in their order, with the norm of the gradients."""
        with self.autocast():
            outputs = self.loss(batch)
        gradients = torch.autograd.grad(outputs["loss"], self.parameters, allow_unused=True)
        if self.together:
            distributed.average_([gradient for gradient in gradients if gradient is not None])
        try:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            norm = self.clip()
            with self.rates.in_place():
                self.rates.optimizer.step()
        finally:  # where a capture fails they lie in memory that was never written
            for parameter in self.parameters:
                parameter.grad = None
        return tuple(outputs), [*[value.detach() for value in outputs.values()], norm.detach()]

    def settle(self) -> None:
        """See `GraphedWork.settle`."""
        self.graphed.settle()
        self.epochs.settle()
