"""How far a run has come: its counters and clocks, its evaluations, and why it stopped."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from marl.callbacks.base import better, expect
from marl.task import Task

STAGES = ("collect", "update")  # of an iteration, whose seconds are logged


@dataclass
class RunState:
    """The part of a run that is numbers: everything here is plain Python and goes into checkpoints.

    Attributes:
        iterations: how many iterations the run has.
        unit, units_per_iteration: what the budget counts, and how many of them an iteration has.
        monitor, mode: figure of the evaluation that decides which one is best, and whether "max" or "min" is better.
        iteration: iterations done.
        evaluation: figures of the latest evaluation.
        best: {"value", "iteration", "evaluation"} of the best evaluation; None before the first finite one.
        seconds: {stage: seconds of wall-clock}, and "total".
        restores: how often the run went back to a checkpoint.
        rate_factor: what these restores have multiplied the learning rates by.
        stop_reason: why the run ends before its last iteration; None while it goes on.
    """

    iterations: int
    unit: str
    units_per_iteration: int
    monitor: str
    mode: str
    iteration: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    restores: int = 0
    rate_factor: float = 1.0
    stop_reason: str | None = None
    _logged: dict[str, float] = field(default_factory=dict)  # `seconds` at the latest record
    _start_time: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, task: Task, iterations: int, monitor: str | None, mode: str | None) -> "RunState":
        """The state of a run that begins; `monitor` and `mode` are the task's own where they are None.

        Raises:
            UserError: the task's evaluations have no such figure.
        """
        figure, better_by = task.monitor
        if monitor:
            expect(task.figure_names(), monitor, "trainer.monitor")
        seconds = defaultdict(float, compile=task.compile_seconds)
        budget = iterations, task.unit, task.units_per_iteration
        return cls(*budget, monitor or figure, mode or better_by, seconds=seconds)

    @property
    def units(self) -> int:
        """Frames, epochs or batches done so far."""
        return self.iteration * self.units_per_iteration

    @property
    def ended(self) -> bool:
        """Whether there is no further iteration."""
        return self.iteration >= self.iterations or self.stop_reason is not None

    def due(self, every: int) -> bool:
        """Whether something that happens every so many iterations happens now; at the end it always does."""
        return self.ended or (every > 0 and self.iteration % every == 0)

    def advance(self) -> None:
        """An iteration is done."""
        self.iteration += 1

    def stop(self, reason: str | None) -> None:
        """End the run after this iteration; `reason` is kept in the summary. None: go on."""
        self.stop_reason = reason

    def judge_by(self, monitor: str, mode: str) -> None:
        """From now on the best evaluation is that with the best `monitor`."""
        self.monitor, self.mode = monitor, mode

    def note_evaluation(self, evaluation: dict[str, float]) -> None:
        """Take the figures of an evaluation as the latest."""
        self.evaluation = evaluation

    def improve(self) -> bool:
        """Take the latest evaluation as the best if it is; whether it is."""
        value = self.evaluation[self.monitor]
        if not better(value, self.best and self.best["value"], self.mode):
            return False
        self.best = {"value": value, "iteration": self.iteration, "evaluation": self.evaluation}
        return True

    def note_restore(self, restores: int, factor: float) -> None:
        """A checkpoint was gone back to, `restores` times by now, and the learning rates multiplied by `factor`."""
        self.restores = restores
        self.rate_factor *= factor

    # ---- clocks ------------------------------------------------------------------------------------------------

    @contextmanager
    def clock(self, stage: str, device: torch.device) -> Iterator[None]:
        """Add the block's wall-clock seconds to `seconds[stage]`, with the queue of `device` drained."""
        start_time = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds[stage] += time.perf_counter() - start_time

    def start_clock(self) -> None:
        """The total counts from now on, after what a resumed run had taken before."""
        self._start_time = time.perf_counter() - self.seconds["total"]

    def read_clock(self) -> float:
        """Seconds of the whole run so far."""
        self.seconds["total"] = time.perf_counter() - self._start_time
        return self.seconds["total"]

    def stage_seconds(self) -> dict[str, float]:
        """{stage: seconds} since this was last asked for."""
        seconds = {stage: self.seconds[stage] - self._logged.get(stage, 0.0) for stage in STAGES}
        self._logged = dict(self.seconds)
        return seconds

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from, and for readers the budget done."""
        return {
            "iteration": self.iteration,
            "iterations": self.iterations,
            "budget": {self.unit: self.units},
            "restores": self.restores,
            "lowered": self.rate_factor,
            "stop_reason": self.stop_reason,
            "best": self.best,
            "evaluation": self.evaluation,
            "seconds": dict(self.seconds),
        }

    def load_state_dict(self, state: Mapping[str, Any], keep_stop_reason: bool = True) -> None:
        """Continue from `state_dict`; a run that is now longer does not keep the reason why it stopped."""
        self.iteration, self.best, self.evaluation = state["iteration"], state["best"], state["evaluation"]
        self.restores, self.rate_factor = state["restores"], state.get("lowered", 1.0)  # absent in older checkpoints
        if keep_stop_reason:
            self.stop_reason = state["stop_reason"]
        self.seconds.update(state["seconds"])
        self._logged = dict(self.seconds)
