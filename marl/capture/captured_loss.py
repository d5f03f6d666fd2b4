"""A loss and its gradients, recorded once and replayed (`marl.capture.op_graph`)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from marl.capture.op_graph import GraphedFunction, made_of_tensors, replayable


class CapturedLoss:
    """Outputs of a loss, and its gradients where a backward pass leaves them, from recordings where these are possible.

    A loss that can be recorded has `capture_key()`: everything that decides what it computes beside tensors and their
    shapes. Its own class must define it, since a subclass may depend on more. Minibatches that carry a graph are never
    recorded.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss, self.replayed = loss, GraphedFunction(self._passes, loss)
        self.parameters = [p for p in loss.parameters() if p.requires_grad]
        self.output_names: dict[tuple, tuple] = {}  # of a kind of minibatch: the outputs, parameters with a gradient

    def __call__(self, batch: Mapping) -> dict[str, Tensor]:
        names, values = [], []
        flatten(batch, names, values)
        if any(value.requires_grad for value in values):  # its graph goes on outside of the loss
            outputs = self.loss(batch)
            outputs["loss"].backward()
            return outputs
        self.batch, self.key = batch, (*names, self.loss.capture_key())
        results = self.replayed(values, self.key)
        outputs, trained = self.output_names[self.key]
        for parameter, gradient in zip(trained, results[len(outputs) :], strict=True):
            parameter.grad = gradient
        copies = torch._foreach_clone(results[: len(outputs)])  # replays write all minibatches' results to one place
        return dict(zip(outputs, copies, strict=True))

    def _passes(self, *values: Tensor) -> list[Tensor]:
        """Outputs, then the gradients of those parameters that have one."""
        outputs = self.loss(rebuilt(self.batch, iter(values)))
        gradients = torch.autograd.grad(outputs["loss"], self.parameters, allow_unused=True)
        trained = [(p, g) for p, g in zip(self.parameters, gradients, strict=True) if g is not None]
        self.output_names[self.key] = tuple(outputs), [p for p, _ in trained]
        return [*[value.detach() for value in outputs.values()], *[g for _, g in trained]]


def can_be_captured(loss: nn.Module) -> bool:
    """Whether a loss says what decides its result (`capture_key`), and is made of parts that can be replayed."""
    return "capture_key" in vars(type(loss)) and replayable(loss)


def can_be_graphed(loss: nn.Module) -> bool:
    """The same on a GPU (`marl.engine.device_update`)."""
    return "capture_key" in vars(type(loss)) and made_of_tensors(loss)


def flatten(batch: Mapping, names: list[str], values: list[Tensor]) -> None:
    """Add a nested batch's keys, those of nestings too, to `names`, and its tensors to `values`."""
    for name, value in batch.items():
        names.append(name)
        values.append(value) if isinstance(value, Tensor) else flatten(value, names, values)


def rebuilt(batch: Mapping, values: Iterator[Tensor]) -> dict:
    """The batch's nesting with other tensors at the leaves."""
    return {k: next(values) if isinstance(v, Tensor) else rebuilt(v, values) for k, v in batch.items()}
