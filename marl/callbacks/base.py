"""Callbacks of the engine: what may look at every iteration and stop the run."""

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

from marl.core.errors import UserError, closest

if TYPE_CHECKING:  # a run holds callbacks: at run time they do not import it
    from marl.engine.run_view import RunView


class Callback:
    """Base class of what looks at a run; every hook does nothing until it is overridden.

    A hook gets the trainer, as a `RunView`: what it may read and ask for. Nothing there is assigned to.
    """

    def wrap_task(self, task):
        """Before anything is built for the run: the task to train, this one or one around it."""
        return task

    def on_start(self, trainer: "RunView") -> None:
        """Before the first iteration, after a resume has been loaded."""

    def on_iteration(self, trainer: "RunView", record: dict) -> None:
        """After every iteration, with the logged record (host floats)."""

    def on_evaluation(self, trainer: "RunView", evaluation: dict[str, float]) -> None:
        """After every evaluation, with its figures."""

    def on_error(self, trainer: "RunView", error: RuntimeError) -> None:
        """A minibatch's forward or backward pass raised `error`; may raise a clearer one."""

    def on_end(self, trainer: "RunView") -> None:
        """After the last iteration, also when the run fails."""

    def state_dict(self) -> dict:
        """What must survive a resume; plain Python."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`."""


def better(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether `value` is finite and beats `best` by more than `min_delta` in the direction `mode`."""
    if best is None or not math.isfinite(value):
        return math.isfinite(value)
    return value > best + min_delta if mode == "max" else value < best - min_delta


def expect(names: Collection[str] | None, monitor: str, key: str) -> None:
    """Raise a UserError that names `key` where evaluations will not have `monitor`; see `Task.figure_names`."""
    if names is not None and not any(monitor == name or name[-1] == "/" and monitor.startswith(name) for name in names):
        there = ", ".join(f"{name}…" if name[-1] == "/" else name for name in sorted(names))
        raise UserError(f"{key}={monitor!r}: evaluation has {there}{closest(monitor, names)}")


def monitored(evaluation: dict[str, float], monitor: str, key: str) -> float:
    """`evaluation[monitor]`, or a UserError that names `key` and what there is."""
    if monitor not in evaluation:
        there = ", ".join(sorted(evaluation))
        raise UserError(f"{key}={monitor!r}: evaluation has {there}{closest(monitor, evaluation)}")
    return evaluation[monitor]
