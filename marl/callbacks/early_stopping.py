"""Ends a run whose figure of the evaluation no longer gets better."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from marl.callbacks.base import Callback, better, expect, monitored

if TYPE_CHECKING:  # a run holds callbacks: at run time they do not import it
    from marl.engine.run_view import RunView


@dataclass
class EarlyStopping(Callback):
    """Stop when `monitor` has not improved by `min_delta` for `patience` evaluations, or reached `target`."""

    monitor: str | None = None
    mode: Literal["max", "min"] | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    target: float | None = None
    best: float | None = field(default=None, init=False)
    waited: int = field(default=0, init=False)

    def on_start(self, trainer: "RunView") -> None:
        if self.monitor:
            expect(trainer.task.figure_names(), self.monitor, "callbacks.early_stopping.monitor")

    def on_evaluation(self, trainer: "RunView", evaluation: dict[str, float]) -> None:
        monitor, mode = self.monitor or trainer.monitor, self.mode or trainer.mode
        value = monitored(evaluation, monitor, "callbacks.early_stopping.monitor")
        if better(value, self.best, mode, self.min_delta):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            trainer.stop(f"{monitor} has not improved for {self.waited} evaluations")
        target = self.target if math.isfinite(value) else None
        if target is not None and (value >= target if mode == "max" else value <= target):
            trainer.stop(f"{monitor} reached {value:.4g}, the target is {self.target:.4g}")

    def state_dict(self):
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state):
        self.best, self.waited = state["best"], state["waited"]
