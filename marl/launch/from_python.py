"""A run from Python: what `scripts/train.py` does with a configuration, done with objects."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from marl.callbacks.base import Callback
from marl.config.described import config_of_run
from marl.config.presets import choices_of, preset
from marl.core import files, run_directory
from marl.core.errors import UserError
from marl.core.kinds import validate
from marl.engine.trainer import Trainer
from marl.launch.build import configure_process
from marl.loggers.loggers import CSVLogger, Logger, TensorBoardLogger
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
from marl.task import Task

T = TypeVar("T")

USUAL = {"csv": {"_target_": "marl.loggers.CSVLogger"}, "tensorboard": {"_target_": "marl.loggers.TensorBoardLogger"}}


def train(
    task: Task,
    run_dir: str | Path,
    trainer: Trainer | None = None,
    optimizer: OptimizerConfig | None = None,
    schedule: ScheduleConfig | None = None,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] | None = None,
) -> dict[str, Any]:
    """Train `task` in the directory `run_dir` and return its summary (`summary.json`).

    What is left out is what the command line would take: `conf/trainer/default.yaml`, the algorithm's optimiser
    (`conf/optimizer`), the schedule `conf/scheduler/linear.yaml`, `metrics.csv` and TensorBoard. The directory then
    holds a run like any other: scripts evaluate, replay, explain and resume it. Callbacks and loggers of your own are
    not part of its `config.yaml`. Where a part lies in a notebook, no configuration can name it: a warning says so, and
    only checkpoints are kept.

    Raises:
        UserError: settings that do not fit, or a directory that holds a run already.
        Diverged: a loss was not finite (`marl.core.errors`).
    """
    run_dir = Path(run_dir)
    algo = getattr(task, "algo", None)
    trainer = trainer or _default(Trainer, "trainer/default")
    usual = choices_of(type(algo))["optimizer"] if algo else "adam"
    optimizer = optimizer or _default(OptimizerConfig, f"optimizer/{usual}")
    schedule = schedule or _default(ScheduleConfig, "scheduler/linear")
    config = _described(task, trainer, optimizer, schedule, loggers)
    configure_process(trainer.threads, trainer.helpers, trainer.deterministic)
    with run_directory.exclusive(run_dir, new=True) as lease:
        updater = trainer.build_updater(task, optimizer, schedule)  # mistakes are reported before files are written
        if config:
            text = yaml.safe_dump({**config, "paths": {"run_dir": str(run_dir)}}, sort_keys=False, allow_unicode=True)
            files.write(run_dir / run_directory.CONFIG, text.encode())
        lease.begin()
        loggers = [CSVLogger(), TensorBoardLogger()] if loggers is None else loggers
        seed = getattr(task, "seed", 0)
        setup = {"callbacks": callbacks, "loggers": loggers, "seed": seed, "config": config}
        return trainer.fit(task, run_dir, updater=updater, **setup)


def _default(kind: type[T], option: str) -> T:
    """The object of an option of `conf/`, which is of this kind."""
    return preset(option)


def _described(
    task: Task,
    trainer: Trainer,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    loggers: Sequence[Logger] | None,
) -> dict[str, Any]:
    """The run's configuration; {} with a warning where there can be none."""
    try:
        config = config_of_run(task, trainer, optimizer, schedule, logger=USUAL if loggers is None else {})
    except UserError as error:
        warnings.warn(f"no config.yaml, so that scripts and Policy.load cannot read this run: {error}", stacklevel=3)
        return {}
    validate(config)
    return config
