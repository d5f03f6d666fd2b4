"""What callbacks may read of a run, and ask for: the public side of the engine's state."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from marl.engine.run_state import RunState
from marl.engine.updater import Updater
from marl.loggers.loggers import Logger
from marl.optim.lr_schedule import Schedule
from marl.task import Task


class RunView:
    """A run as callbacks see it; nothing here is assigned to from outside.

    Attributes:
        task: what is trained.
        run_dir: the run's directory.
        config: its configuration; {} where it was built by hand.
        seed: from which every random stream is derived.
        loggers: those that are open.
    """

    task: Task
    run_dir: Path
    config: dict[str, Any]
    seed: int
    loggers: Sequence[Logger]
    run_state: RunState
    updater: Updater

    def stop(self, reason: str) -> None:
        """End the run after this iteration; `reason` is printed and kept in the summary."""
        self.run_state.stop(reason)

    def save(self, name: str) -> None:
        """Write `checkpoints/<name>.pt`: everything that decides the next step."""
        raise NotImplementedError

    def judge_by(self, monitor: str, mode: str) -> None:
        """From now on the figure `monitor` of evaluations decides which one is best."""
        self.run_state.judge_by(monitor, mode)

    def averaged(self) -> AbstractContextManager:
        """The task with the average of its weights inside, where one is kept."""
        return self.updater.averaged(lambda: self.task.batches(self.iteration))

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return self.run_state.iteration

    @property
    def iterations(self) -> int:
        """Iterations of the whole run."""
        return self.run_state.iterations

    @property
    def units(self) -> int:
        """Frames, epochs or batches done."""
        return self.run_state.units

    @property
    def monitor(self) -> str:
        """Figure of the evaluation that decides which one is best."""
        return self.run_state.monitor

    @property
    def mode(self) -> str:
        """Whether "max" or "min" is better of `monitor`."""
        return self.run_state.mode

    @property
    def evaluation(self) -> dict[str, float]:
        """Figures of the latest evaluation."""
        return self.run_state.evaluation

    @property
    def best(self) -> dict[str, Any] | None:
        """{"value", "iteration", "evaluation"} of the best evaluation so far."""
        return self.run_state.best

    @property
    def seconds(self) -> Mapping[str, float]:
        """{stage: seconds of wall-clock}."""
        return self.run_state.seconds

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The run's optimiser."""
        return self.updater.optimizer

    @property
    def schedule(self) -> Schedule:
        """The run's learning-rate schedule."""
        return self.updater.schedule
