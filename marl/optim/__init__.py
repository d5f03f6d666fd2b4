"""Optimisers, learning-rate schedules and averages of weights."""

from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig

__all__ = [
    "OptimizerConfig",
    "ScheduleConfig",
]
