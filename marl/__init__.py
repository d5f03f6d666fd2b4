"""What every task shares: engine, networks, optimiser and schedules, checkpoints, data, logging."""

import os

# Threads that spin while they wait cost the others their core; it must be said before torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from marl.core.imports import on_demand  # noqa: E402

__getattr__, __dir__ = on_demand(
    __name__,
    {
        "Callback": "marl.callbacks",
        "OptimizerConfig": "marl.optim",
        "ScheduleConfig": "marl.optim",
        "Task": "marl.task",
        "Trainer": "marl.engine.trainer",
        "UserError": "marl.core.errors",
        "preset": "marl.config.presets",
        "train": "marl.launch.from_python",
    },
)
