"""An update on a GPU: learning rates in its memory, and loss, gradients, clipping and Adam as one CUDA graph."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from marl.capture.captured_loss import flatten, rebuilt
from marl.capture.cuda_graph import GraphedWork

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


class DeviceUpdate:
    """A minibatch trained on, as one CUDA graph where that is possible (`marl.capture.cuda_graph.GraphedWork`).

    Args:
        loss: has `capture_key()` (`marl.capture.captured_loss.CapturedLoss`).
        rates: of its optimiser.
        clip: clips the gradients in place and gives their norm.
        autocast: the precision of the loss.
    """

    def __init__(
        self,
        loss: nn.Module,
        rates: DeviceRates,
        clip: Callable[[], Tensor],
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.loss, self.rates, self.clip, self.autocast = loss, rates, clip, autocast
        self.parameters = [p for p in loss.parameters() if p.requires_grad]
        self.names: dict[tuple, tuple[str, ...]] = {}  # of a kind of minibatch: the outputs
        self.graphed = GraphedWork(self._work, f"{type(loss).__name__} and its optimiser's step")
        self.optimizer_state: object = None
        self.state: list[Tensor] = []

    def __call__(self, batch: Mapping) -> tuple[dict[str, Tensor], Tensor]:
        """The loss's outputs, and the norm of the gradients before they were clipped; the step is made."""
        names: list[str] = []
        values: list[Tensor] = []
        flatten(batch, names, values)
        settings = [tuple(group.get(name) for name in BAKED) for group in self.rates.optimizer.param_groups]
        self.batch, self.key = batch, (*names, self.loss.capture_key(), *settings)
        self.rates.write()
        *outputs, norm = torch._foreach_clone(list(self.graphed(values, self._memory(), self.key)))
        return dict(zip(self.names[self.key], outputs, strict=True)), norm

    def _memory(self) -> list[Tensor]:
        """Weights, buffers and moments: what a step writes."""
        optimizer = self.rates.optimizer
        known = sum(len(each) for each in optimizer.state.values())
        if optimizer.state is not self.optimizer_state or known != self.known:
            self.optimizer_state, self.known = optimizer.state, known
            moments = [value for each in optimizer.state.values() for value in each.values()]
            self.state = [*map(Tensor.detach, self.loss.parameters()), *self.loss.buffers(), *moments]
        return self.state

    def _work(self, *values: Tensor) -> list[Tensor]:
        with self.autocast():
            outputs = self.loss(rebuilt(self.batch, iter(values)))
        gradients = torch.autograd.grad(outputs["loss"], self.parameters, allow_unused=True)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = self.clip()
        with self.rates.in_place():
            self.rates.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None
        self.names[self.key] = tuple(outputs)
        return [*[value.detach() for value in outputs.values()], norm.detach()]

    def settle(self) -> None:
        """See `GraphedWork.settle`."""
        self.graphed.settle()
