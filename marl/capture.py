"""A loss and its gradients, recorded once and replayed (`marl.recorder`)."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from marl import distributed
from marl.recorder import Replayed, replayable


class Captured:
    """Outputs of a loss, and its gradients where a backward pass leaves them, from recordings where these are possible.

    A loss that can be recorded has `capture_key()`: everything that decides what it computes beside tensors and their
    shapes. Its own class must define it, since a subclass may depend on more.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss, self.replayed = loss, Replayed(self._passes, loss)
        self.parameters = [p for p in loss.parameters() if p.requires_grad]
        self.told: dict[tuple, tuple] = {}  # of a kind of minibatch: names of the outputs, parameters with a gradient

    def __call__(self, batch: Mapping) -> dict[str, Tensor]:
        names, values = [], []
        _flatten(batch, names, values)
        self.batch, self.key = batch, (*names, self.loss.capture_key())
        results = self.replayed(values, self.key)
        outputs, trained = self.told[self.key]
        for parameter, gradient in zip(trained, results[len(outputs) :], strict=True):
            parameter.grad = gradient
        copies = torch._foreach_clone(results[: len(outputs)])  # replays write all minibatches' results to one place
        return dict(zip(outputs, copies, strict=True))

    def _passes(self, *values: Tensor) -> list[Tensor]:
        """Outputs, then the gradients of those parameters that have one."""
        outputs = self.loss(_rebuilt(self.batch, iter(values)))
        gradients = torch.autograd.grad(outputs["loss"], self.parameters, allow_unused=True)
        found = [(p, g) for p, g in zip(self.parameters, gradients, strict=True) if g is not None]
        self.told[self.key] = tuple(outputs), [p for p, _ in found]
        return [*[value.detach() for value in outputs.values()], *[g for _, g in found]]


def captured(trainer: Any) -> Captured | None:
    """What replays the loss of a trainer whose settings and loss permit it; else None."""
    loss = trainer.task.loss
    plain = trainer.precision == "fp32" and trainer.accumulate == 1 and trainer.held is None
    if not (trainer.capture and plain) or trainer.compile or trainer.recompute or distributed.world() > 1:
        return None
    return Captured(loss) if "capture_key" in vars(type(loss)) and replayable(loss) else None


def _flatten(batch: Mapping, names: list[str], values: list[Tensor]) -> None:
    for name, value in batch.items():
        names.append(name)
        values.append(value) if isinstance(value, Tensor) else _flatten(value, names, values)


def _rebuilt(batch: Mapping, values: Iterator[Tensor]) -> dict:
    """The batch's nesting with other tensors at the leaves."""
    return {k: next(values) if isinstance(v, Tensor) else _rebuilt(v, values) for k, v in batch.items()}
