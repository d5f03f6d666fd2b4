"""Optimisers and learning-rate schedules of torch by name, with a learning rate per part and frozen parts."""

import inspect
import warnings
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import lr_scheduler

from marl.errors import UserError

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


def _named(module, name: str, base: type, key: str) -> type:
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        known = sorted(n for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, base))
        raise UserError(f"{key}={name!r}: not in {module.__name__}; allowed are {', '.join(known)}")
    return found


def _call(target: type, key: str, *args, **kwargs):
    try:
        return target(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {target.__name__} refuses {kwargs}: {error}") from error


@dataclass
class OptimizerConfig:
    """Any optimiser of `torch.optim`, built over named parts of a model.

    Weight decay spares biases and normalisation layers by default (they are scale-free). `lr_per_part` gives
    a part its own learning rate, `freeze` keeps parts as they are. The fused kernel is used where torch has one.
    """

    name: str = "Adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    no_decay_on_bias_and_norm: bool = True
    lr_per_part: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)
    freeze: list[str] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(self, parts: dict[str, nn.Module]) -> torch.optim.Optimizer:
        """The optimiser over `parts`; frozen parts lose `requires_grad`. Raises UserError for unknown names."""
        kind = _named(torch.optim, self.name, torch.optim.Optimizer, "optimizer.name")
        for key, names in (("freeze", self.freeze), ("lr_per_part", self.lr_per_part)):
            for unknown in set(names) - set(parts):
                raise UserError(f"optimizer.{key}: no part {unknown!r}; parts are {', '.join(parts)}")
        groups, seen = [], set()
        for name, module in parts.items():
            if name in self.freeze:
                module.requires_grad_(False)
                continue
            lr = self.lr_per_part.get(name, self.lr)
            decayed, spared = [], []
            for layer in module.modules():
                for key, parameter in layer.named_parameters(recurse=False):
                    if id(parameter) in seen or not parameter.requires_grad:
                        continue
                    seen.add(id(parameter))
                    spare = self.no_decay_on_bias_and_norm and (isinstance(layer, NORMS) or "bias" in key)
                    (spared if spare and self.weight_decay else decayed).append(parameter)
            groups += [
                {"params": params, "lr": lr, "weight_decay": decay, "name": name}
                for params, decay in ((decayed, self.weight_decay), (spared, 0.0))
                if params
            ]
        if not groups:
            raise UserError(f"optimizer.freeze={self.freeze}: nothing is left to train")
        accepted = inspect.signature(kind).parameters
        kwargs = dict(self.kwargs)
        if "weight_decay" not in accepted:
            if self.weight_decay:
                raise UserError(f"optimizer.weight_decay={self.weight_decay}: {self.name} has none")
            for group in groups:
                del group["weight_decay"]
        if "fused" in accepted and "foreach" not in kwargs:
            kwargs.setdefault("fused", True)
        return _call(kind, "optimizer", groups, lr=self.lr, **kwargs)


@dataclass
class ScheduleConfig:
    """A learning-rate schedule: linear warm-up, then stages of `torch.optim.lr_scheduler`, one after another.

    A stage is `{name: CosineAnnealingLR, T_max: total, length: 100}`: `length` in scheduler steps (null: the rest
    of the run); the string "total" in a value stands for the stage's length. The scheduler steps once per
    optimiser step or once per iteration of the engine (`interval`).
    """

    stages: list[dict[str, Any]] = field(default_factory=list)
    warmup: Annotated[int, Field(ge=0)] = 0
    interval: Literal["step", "iteration"] = "iteration"
    monitor: str | None = None

    def build(self, optimizer: torch.optim.Optimizer, iterations: int, steps: int) -> "Schedule":
        """The schedule for a run of `iterations` iterations and `steps` optimiser steps in all."""
        total = iterations if self.interval == "iteration" else steps
        stages = [dict(stage) for stage in self.stages]
        plateau = [s for s in stages if s.get("name") == "ReduceLROnPlateau"]
        if plateau and (len(stages) > 1 or self.warmup):
            raise UserError("scheduler.stages: ReduceLROnPlateau stands alone, without warm-up or other stages")
        if plateau and self.interval == "step":
            raise UserError("scheduler.interval=step: ReduceLROnPlateau steps at evaluations; use iteration")
        built, lengths = [], []
        if self.warmup:
            built.append(lr_scheduler.LinearLR(optimizer, 1 / (self.warmup + 1), 1.0, self.warmup))
            lengths.append(self.warmup)
        for i, stage in enumerate(stages):
            key = f"scheduler.stages[{i}]"
            if "name" not in stage:
                raise UserError(f"{key}: needs a name, a class of torch.optim.lr_scheduler")
            name, length = stage.pop("name"), stage.pop("length", None)
            if length is None:
                if i < len(stages) - 1:
                    raise UserError(f"{key}.length: only the last stage may leave its length open")
                length = max(1, total - sum(lengths))
            kwargs = {k: length if v == "total" else v for k, v in stage.items()}
            kind = _named(lr_scheduler, name, lr_scheduler.LRScheduler, f"{key}.name")
            built.append(_call(kind, key, optimizer, **kwargs))
            lengths.append(length)
        if not built:
            return Schedule(None, self.interval)
        ends = torch.tensor(lengths).cumsum(0).tolist()[:-1]
        chained = built[0] if len(built) == 1 else lr_scheduler.SequentialLR(optimizer, built, ends)
        return Schedule(chained, self.interval, self.monitor if plateau else None, bool(plateau))


class Schedule:
    """A built schedule; `step` is called by the engine at its interval."""

    def __init__(self, scheduler, interval: str, monitor: str | None = None, plateau: bool = False):
        self.scheduler, self.interval, self.monitor, self.plateau = scheduler, interval, monitor, plateau

    def step(self, interval: str) -> None:
        """Advance, if this schedule counts `interval`s."""
        if self.scheduler is not None and not self.plateau and interval == self.interval:
            self.scheduler.step()

    def observe(self, evaluation: dict[str, float], default: str) -> None:
        """Tell a plateau schedule the evaluation's figure."""
        if self.plateau:
            key = self.monitor or default
            if key not in evaluation:
                raise UserError(f"scheduler.monitor={key!r}: evaluation has {', '.join(sorted(evaluation))}")
            self.scheduler.step(evaluation[key])

    def replay(self, state: dict) -> list[dict[str, Any]] | None:
        """Walk to where `state` stood, on a schedule laid over another length; the settings that groups have there.

        None where the length makes no difference: no schedule, or one that only looks at evaluations.
        """
        if self.plateau or self.scheduler is None:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimiser has not stepped
            for _ in range(state["last_epoch"] - self.scheduler.last_epoch):
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


def clip_gradients(parameters: list[nn.Parameter], max_norm: float | None) -> Tensor:
    """L2 norm of the gradients, scaled down to `max_norm` in place; stays on the device (no host sync).

    0 where none has a gradient: a part may be left out of some steps.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
