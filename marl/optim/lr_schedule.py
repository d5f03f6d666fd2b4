"""Learning-rate schedules of torch by name: stages one after another, warm-up, plateaus, chains, functions."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch.optim import lr_scheduler, swa_utils

from marl.core.errors import UserError, closest
from marl.core.kinds import function
from marl.core.schema import check_arguments

PLATEAU = "ReduceLROnPlateau"
ABSOLUTE = ("max_lr", "base_lr", "swa_lr")  # learning rates themselves, where other arguments are factors
MISTAKES = (TypeError, ValueError, AttributeError, ArithmeticError, LookupError, AssertionError, RuntimeError)
TRIED = 1000  # scheduler steps that a stage is tried for before a run


def inverse_square_root(step: int) -> float:
    """1/√(1 + step), a factor for `lr_lambda`: the decay that Robbins and Monro's conditions allow."""
    return (1 + step) ** -0.5


def class_named(modules: tuple, name: str, base: type, key: str) -> type:
    """The subclass of `base` called `name` in one of `modules`. Raises UserError, listing what there is."""
    kind = next((getattr(module, name) for module in modules if hasattr(module, name)), None)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        known = {n for m in modules for n, c in vars(m).items() if isinstance(c, type) and issubclass(c, base)}
        names = sorted(known - {base.__name__, f"_{base.__name__}"})
        raise UserError(
            f"{key}={name!r}: not in {modules[0].__name__}{closest(name, names)}; allowed are {', '.join(names)}"
        )
    return kind


def called(target: type, key: str, *args, **kwargs):
    """target(*args, **kwargs), whose complaints about the arguments become a UserError that begins with `key`."""
    try:
        return target(*args, **kwargs)
    except MISTAKES as error:
        shown = {name: value for name, value in kwargs.items() if name != "optimizer"}
        raise UserError(f"{key}: {target.__name__} refuses {shown}: {error}") from error


@dataclass
class ScheduleConfig:
    """A learning-rate schedule: linear warm-up, then stages of `torch.optim.lr_scheduler`, one after another.

    A stage is `{name: CosineAnnealingLR, T_max: total, length: 100}`: `length` in scheduler steps (null: the rest
    of the run); the string "total" in a value stands for the stage's length. `schedulers` of a stage
    (ChainedScheduler, SequentialLR) are such mappings again; `lr_lambda` is the dotted path of a function from
    scheduler steps to a factor. The scheduler steps once per optimiser step or once per iteration of the engine
    (`interval`). ReduceLROnPlateau watches `monitor`: a figure of the evaluation, or any other that is logged, each
    iteration then. `max_lr`, `base_lr`, `swa_lr` are rates at `optimizer.lr`: parts keep their ratio to that one.
    """

    stages: list[dict[str, Any]] = field(default_factory=list)
    warmup: Annotated[int, Field(ge=0)] = 0
    interval: Literal["step", "iteration"] = "iteration"
    monitor: str | None = None

    def build(self, optimizer: torch.optim.Optimizer, iterations: int, steps: int, mode: str = "min") -> "Schedule":
        """The schedule for a run of `iterations` iterations and `steps` optimiser steps in all.

        `mode`: "max" or "min", what is better of the figure that a plateau watches where its stage says null.
        """
        # Before warm-up and stages, which change what the groups hold.
        ratios = [group["lr"] / optimizer.defaults["lr"] for group in optimizer.param_groups]
        total = iterations if self.interval == "iteration" else steps
        stages = [dict(stage) for stage in self.stages]
        plateau = [s for s in stages if s.get("name") == PLATEAU]
        if plateau and (len(stages) > 1 or self.warmup):
            raise UserError("scheduler.stages: ReduceLROnPlateau stands alone, without warm-up or other stages")
        if plateau and self.interval == "step":
            raise UserError("scheduler.interval=step: ReduceLROnPlateau steps at evaluations; use iteration")
        if plateau and plateau[0].get("mode", "min") is None:
            if self.monitor:
                message = f"say max or min for scheduler.monitor={self.monitor}, as in scheduler.stages.0.mode=min"
                raise UserError(f"scheduler.stages.0.mode=null: {message}")
            plateau[0]["mode"] = mode
        built, lengths = [], []
        if self.warmup:
            built.append(lr_scheduler.LinearLR(optimizer, 1 / (self.warmup + 1), 1.0, self.warmup))
            lengths.append(self.warmup)
        for i, stage in enumerate(stages):
            key, length = f"scheduler.stages.{i}", stage.pop("length", None)
            if length is None:
                if i < len(stages) - 1:
                    raise UserError(f"{key}.length: only the last stage may leave its length open")
                length = max(1, total - sum(lengths))
            if not plateau:
                _try(stage, optimizer, length, key, ratios)
            built.append(_scheduler(stage, optimizer, length, key, ratios))
            lengths.append(length)
        if not built:
            return Schedule(None, self.interval)
        ends = torch.tensor(lengths).cumsum(0).tolist()[:-1]
        chained = built[0] if len(built) == 1 else lr_scheduler.SequentialLR(optimizer, built, ends)
        return Schedule(chained, self.interval, self.monitor if plateau else None, bool(plateau))


def _try(stage: dict[str, Any], optimizer: torch.optim.Optimizer, length: int, key: str, ratios: list[float]) -> None:
    """Walk a stage beside the optimiser: some mistakes show at a later step only, and are to be told before the run."""
    groups = [{"params": [torch.zeros(1)], "lr": group["lr"]} for group in optimizer.param_groups]
    beside = torch.optim.SGD(groups, lr=1.0)
    scheduler = _scheduler(stage, beside, length, key, ratios)
    beside.step()  # torch warns where a schedule comes first
    try:
        for _ in range(min(length, TRIED)):
            scheduler.step()
    except MISTAKES as error:
        raise UserError(f"{key}: {stage['name']} cannot make its steps with {stage}: {error}") from error
    if (ends := _ends(scheduler)) < length:  # at a step beyond those that were tried
        reason = f"it is over after {ends} scheduler steps, and the stage has {length}"
        raise UserError(f"{key}: {stage['name']} cannot make its steps with {stage}: {reason}")


def _ends(scheduler: Any) -> float:
    """The scheduler steps after which torch refuses another, as OneCycleLR does after its cycle."""
    if isinstance(scheduler, lr_scheduler.ChainedScheduler):
        return min(map(_ends, scheduler._schedulers))
    return getattr(scheduler, "total_steps", math.inf)


def _scheduler(stage: dict[str, Any], optimizer: torch.optim.Optimizer, length: int, key: str, ratios: list[float]):
    """What one stage describes, the schedulers inside of it first; `ratios`: of the groups' rates to optimizer.lr."""
    stage = {name: length if value == "total" else value for name, value in stage.items()}
    if "name" not in stage:
        raise UserError(f"{key}: needs a name, a class of torch.optim.lr_scheduler")
    kind = class_named((lr_scheduler, swa_utils), stage.pop("name"), lr_scheduler.LRScheduler, f"{key}.name")
    built = ("schedulers", "lr_lambda")  # these are objects by the time torch sees them
    check_arguments(kind, {n: v for n, v in stage.items() if n not in built}, key, given=("optimizer", *built))
    for name, value in stage.items():
        if name == "schedulers":
            inner = enumerate(value)
            stage[name] = [_scheduler(each, optimizer, length, f"{key}.schedulers.{i}", ratios) for i, each in inner]
        elif name in ABSOLUTE and isinstance(value, int | float) and any(ratio != 1 for ratio in ratios):
            stage[name] = [value * ratio for ratio in ratios]
        elif name == "lr_lambda" and isinstance(value, str):
            stage[name] = function(value, f"{key}.lr_lambda", 1)
    return called(kind, key, optimizer=optimizer, **stage)


class Schedule:
    """A built schedule; `step` is called by the engine at its interval."""

    def __init__(self, scheduler, interval: str, monitor: str | None = None, plateau: bool = False):
        self.scheduler, self.interval, self.monitor, self.plateau = scheduler, interval, monitor, plateau

    @property
    def moves_betas(self) -> bool:
        """Whether more than the rates is scheduled: the momentum, by OneCycleLR and CyclicLR."""
        return _moves_betas(self.scheduler)

    def step(self, interval: str) -> None:
        """Advance, if this schedule counts `interval`s."""
        if self.scheduler is not None and not self.plateau and interval == self.interval:
            self.scheduler.step()

    def observe(self, evaluation: dict[str, float], default: str, record: dict[str, float] | None = None) -> None:
        """Tell a plateau schedule the evaluation's figure; `record`: what else is logged, which `follow` looks at."""
        if self.plateau:
            key = self.monitor or default
            name = key if key in evaluation else key.removeprefix("eval/")
            if name in evaluation:
                self.scheduler.step(evaluation[name])
            elif key not in (record or {}):
                known = ", ".join(sorted({*evaluation, *(record or {})}))
                raise UserError(f"scheduler.monitor={key!r}: is not logged; there are {known}")

    def follow(self, figures: dict[str, float]) -> None:
        """Tell a plateau schedule an iteration's figure, where it is one of these and finite."""
        if self.plateau and self.monitor and math.isfinite(figure := figures.get(self.monitor, math.nan)):
            self.scheduler.step(figure)

    def replay(self, state: dict) -> list[dict[str, Any]] | None:
        """Walk to where `state` stood, on a schedule laid over another length; the settings that groups have there.

        None where the length makes no difference: no schedule, or one that only looks at evaluations.
        """
        if self.plateau or self.scheduler is None:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimiser has not stepped
            for _ in range(_steps(state) - _steps(vars(self.scheduler))):
                self.scheduler.step()
        groups = self.scheduler.optimizer.param_groups
        return [{key: value for key, value in group.items() if key != "params"} for group in groups]

    def state_dict(self) -> dict:
        """State of the schedule, plain Python."""
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state_dict`."""
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state)


def _moves_betas(scheduler: Any) -> bool:
    inner = getattr(scheduler, "_schedulers", ())
    return bool(getattr(scheduler, "cycle_momentum", False)) or any(map(_moves_betas, inner))


def _steps(state: Mapping[str, Any]) -> int:
    """How many steps a scheduler has made; a ChainedScheduler leaves counting to its parts."""
    while "last_epoch" not in state:
        inner = state["_schedulers"][0]
        state = inner if isinstance(inner, Mapping) else vars(inner)
    return state["last_epoch"]
