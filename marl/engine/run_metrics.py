"""The figures of an iteration: summed on the device while it runs, brought to the host once."""

from collections.abc import Mapping

import torch
from torch import Tensor

from marl.core import distributed
from marl.engine import non_finite


class RunMetrics:
    """Sums over the minibatches and optimiser steps of an iteration, and the latest record.

    Args:
        mask_non_finite: minibatches whose loss is not finite count as zeros, and their share is reported.

    Attributes:
        batches, steps: minibatches and optimiser steps of this iteration.
        skipped: steps that were left out, on the device.
        names: figures of the loss and its gradient, which must be finite.
        latest: the latest record whose figures were finite.
    """

    def __init__(self, mask_non_finite: bool = False) -> None:
        self.mask_non_finite = mask_non_finite
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.batches = self.steps = 0
        self.norms: Tensor | int = 0
        self.skipped: Tensor | int = 0
        self.names: tuple[str, ...] = ()
        self.latest: dict[str, float] = {}

    def add_batch(self, outputs: Mapping[str, Tensor]) -> None:
        """Sum the loss module's scalars, on the device; the first minibatch of an iteration begins new sums.

        Other outputs are the task's (`marl.task.Task.observe`).
        """
        figures = {name: value.detach() for name, value in outputs.items() if value.dim() == 0}
        if self.mask_non_finite:
            figures = non_finite.masked(figures)
        if self.batches == 0:
            self.sums, self.counts = {}, {}
            self.steps = self.norms = self.skipped = 0
        if figures.keys() == self.sums.keys():
            torch._foreach_add_(list(self.sums.values()), list(figures.values()))
        else:
            self._add_some(figures)
        for name in figures:
            self.counts[name] += 1
        self.batches += 1

    def _add_some(self, figures: Mapping[str, Tensor]) -> None:
        """Of a minibatch that has other figures than those before it, such as one that trains critics only."""
        for name, value in figures.items():
            if name in self.sums:
                self.sums[name] += value
            else:
                self.sums[name], self.counts[name] = value.float().clone(), 0

    def add_step(self, norm: Tensor) -> None:
        """An optimiser step was made with gradients of this norm."""
        self.norms += norm
        self.steps += 1

    def add_skipped(self, finite: Tensor) -> None:
        """An optimiser step is left out where `finite`, bool [] on the device, is False."""
        self.skipped = self.skipped + ~finite

    def take(self, task_metrics: Mapping[str, Tensor | float]) -> dict[str, float]:
        """The iteration's means with the task's own figures, brought to the host in one transfer."""
        figures: dict[str, Tensor | float] = {name: total / self.counts[name] for name, total in self.sums.items()}
        figures["grad_norm"] = self.norms / max(self.steps, 1)
        self.names = tuple(name for name in figures if name != "finite")
        if self.mask_non_finite:
            figures |= non_finite.shares(figures, self.skipped, self.batches)
        figures |= task_metrics
        self.batches = 0
        tensors = {name: value for name, value in figures.items() if isinstance(value, Tensor)}
        values = distributed.mean(torch.stack([value.detach().float() for value in tensors.values()])).tolist()
        return figures | dict(zip(tensors, values, strict=True))

    def note_finite(self, record: dict[str, float]) -> None:
        """Take a record whose figures are finite as the latest."""
        self.latest = record
