"""What tasks have in common that learn from rows of a data set, epoch by epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from marl.data import Loader
from marl.task import Task

EVALUATION_ROWS = 4096  # rows per forward pass outside training: bounds memory, changes no figure


class Epochs(Task):
    """The part of a task (see `marl.task.Task`) that draws batches from a `loader` and keeps its place.

    An iteration of the engine is an epoch, or `batches_per_iteration` batches: checkpoints may then lie in the midst of
    an epoch.
    """

    loader: Loader
    loss: nn.Module

    def budget(self, epochs: int, batches_per_iteration: int | None = None) -> None:
        """Say how many iterations `epochs` passes over the data are, and what is counted."""
        self.per_iteration = batches_per_iteration
        if batches_per_iteration is None:
            self.unit, self.units_per_iteration = "epochs", 1
            self.iterations, self.steps_per_iteration = epochs, len(self.loader)
        else:
            self.unit, self.units_per_iteration = "batches", batches_per_iteration
            self.iterations = -(-epochs * len(self.loader) // batches_per_iteration)
            self.steps_per_iteration = batches_per_iteration

    def batches(self, iteration: int) -> Iterator[TensorDict]:
        """TensorDicts [B]: those of an epoch, or the next `batches_per_iteration`, in their order."""
        if self.per_iteration is None:
            return self.loader.epoch(iteration)
        return self.loader.span(iteration * self.per_iteration, self.per_iteration)

    def means(self, rows: TensorDict) -> dict[str, float]:
        """The loss module's figures in evaluation mode, averaged over `rows` [N], a part of them at a time."""
        totals: dict[str, Tensor] = {}
        with self.evaluating():
            for part in rows.split(EVALUATION_ROWS):
                for name, value in self.loss(part).items():
                    totals[name] = totals.get(name, 0) + value.float() * len(part)
        return {name: (total / len(rows)).item() for name, total in totals.items()}

    def state_dict(self) -> dict:
        return {"shuffle_seed": self.loader.seed}

    def load_state_dict(self, state: dict) -> None:
        """Nothing else: an epoch's order depends on its number and this seed, in any number of processes."""
        self.loader.seed = state["shuffle_seed"]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No gradients and evaluation mode inside; the mode of before afterwards."""
        training = self.loss.training
        self.loss.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.loss.train(training)
