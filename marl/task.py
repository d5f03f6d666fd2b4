"""What the engine asks of a task: data, batches, a loss and an evaluation; nothing else sets tasks apart."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from tensordict import TensorDict
from torch import Tensor, nn


@runtime_checkable
class Task(Protocol):
    """A learning problem, supervised or reinforcement learning, on its device.

    Attributes:
        name: kind of task, for logs and `summary.json`.
        unit: what the budget counts, "frames" (environment frames), "epochs" or "batches".
        iterations: the whole budget in iterations of the engine's loop.
        units_per_iteration: frames collected per iteration, 1 epoch, or batches.
        steps_per_iteration: minibatches per iteration at most; sizes the learning-rate schedule.
        loss: module that maps a batch to a dict of device scalars; "loss" is minimised, the rest is logged.
        compile_seconds: (optional) seconds that building took, compilation included; 0 where there is none.
        accumulates: (optional) False where an optimiser step may not be of several minibatches.
        callbacks: (optional) callbacks of its own, called between the run's and the progress bar.
        monitor: (metric of `evaluate`, "max" or "min") that decides which checkpoint is best.
    """

    name: str
    unit: str
    iterations: int
    units_per_iteration: int
    steps_per_iteration: int
    loss: nn.Module
    monitor: tuple[str, str]

    def parts(self) -> dict[str, nn.Module]:
        """Named parts of the model ("actor", "critic" or "model"): own learning rate, freezing, gradient norm."""

    def collect(self, iteration: int) -> None:
        """Gather this iteration's data: a rollout and its advantages; nothing where the data set is given."""

    def batches(self, iteration: int) -> Iterator[TensorDict]:
        """Minibatches of this iteration, shuffled by the task's own stream."""

    def observe(self, outputs: dict[str, Tensor]) -> None:
        """See the loss module's outputs of the batch just trained on (for example for a KL stop)."""

    def metrics(self) -> dict[str, Tensor | float]:
        """Figures of this iteration's data, left on the device."""

    def evaluate(self) -> dict[str, float]:
        """Figures of the model as it stands; leaves every stream that training uses untouched."""

    def summary(self, metrics: dict[str, float]) -> dict:
        """The block of `summary.json` made from what `evaluate` returned."""

    def state_dict(self) -> dict:
        """What decides the next data: environment, loader position, random streams; tensors and plain Python."""

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`, to the same bits."""

    def rejoin(self, iteration: int, saved: dict) -> None:
        """Continue after `iteration` where the checkpoint is of another number of processes: from new streams.

        saved: the `state_dict` of one of those processes.
        """

    def diagnose(self) -> str | None:
        """(optional) The first number of this iteration's data that is not finite, and where; None where all are."""
