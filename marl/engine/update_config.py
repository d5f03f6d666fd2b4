"""Settings of the updates, and which of them contradict one another, the task or the device."""

from dataclasses import dataclass
from typing import Literal

import torch

from marl.core import distributed
from marl.core.errors import UserError
from marl.engine import activation_checkpointing
from marl.optim.optimizer_config import OptimizerConfig
from marl.optim.weight_averaging import BEGIN, DECAY, Kind
from marl.task import Task


@dataclass(frozen=True)
class UpdateConfig:
    """Settings of the updates; `marl.engine.trainer.Trainer` explains each."""

    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    grad_clip: float | None = None
    clip_value: float | None = None
    accumulate: int = 1
    compile: bool = False
    capture: bool = True
    recompute: bool = False
    average: Kind = "none"
    average_decay: float = DECAY
    average_from: float = BEGIN
    non_finite: Literal["stop", "skip", "restore"] = "stop"
    strategy: Literal["single", "ddp"] = "single"


def check(task: Task, optimizer: OptimizerConfig, config: UpdateConfig, iterations: int, device: torch.device) -> None:
    """Raise UserError where settings contradict one another, the task or the device."""
    if distributed.world() > 1 and config.strategy == "single":
        raise UserError("trainer.strategy='single': torchrun started several processes; trainer=ddp uses them")
    if config.precision in ("fp16", "tf32") and device.type == "cpu":
        raise UserError(f"trainer.precision={config.precision!r}: needs a GPU; on a CPU fp32 and bf16 are allowed")
    for key, value, default in (
        ("average_decay", config.average_decay, DECAY),
        ("average_from", config.average_from, BEGIN),
    ):
        if config.average == "none" and value != default:
            raise UserError(f"trainer.{key}={value}: nothing is averaged; trainer.average=ema or swa does that")
    if config.average == "swa" and config.average_decay != DECAY:
        message = "swa is a plain mean; trainer.average=ema has a decay"
        raise UserError(f"trainer.average_decay={config.average_decay}: {message}")
    if config.recompute:
        activation_checkpointing.stacks(task.loss)
    budget = max(iterations, task.iterations)  # one that max_iterations breaks off may be resumed
    for part, begin in optimizer.unfreeze.items():
        if begin >= budget:
            message = f"the run ends before, after {budget}; optimizer.freeze=[{part}] keeps it for good"
            raise UserError(f"optimizer.unfreeze={{{part}: {begin}}}: {message}")
    if config.accumulate > 1 and not task.accumulates:
        message = f"trainer.accumulate={config.accumulate}: only 1 is allowed with algo.update=sequential,"
        raise UserError(f"{message} algo=shac or a replay buffer, where a step must not span several minibatches")
