"""A script that trains: its command line composed by Hydra, its job run once or swept over, its mistakes told."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from marl.config import compose
from marl.config.conf_tree import CONF
from marl.config.hydra_errors import translate_hydra_errors
from marl.config.overrides import tidy, value_of
from marl.core import distributed, run_directory, terminal
from marl.core.errors import UserError
from marl.core.imports import find_user_modules, require_checkout
from marl.launch import multirun
from marl.launch.cli import RESUME, SAME_COMMAND, Job, flags_first, guard
from marl.launch.new_run_directory import NewRunDirectory


def run(job: Job) -> None:
    """A script: compose from `sys.argv` (`-m` sweeps), call `job(cfg, run_dir)`, which returns the metric.

    `resume=RUN_DIR` continues in that directory, with the configuration that it holds. Mistakes of the user
    (UserError and Hydra's own complaints) end with one line on stderr and exit code 2.
    """
    find_user_modules()
    sweeping = bool({"-m", "--multirun"} & set(sys.argv))
    composing = True  # until the job begins
    with guard(SAME_COMMAND if sweeping else RESUME), translate_hydra_errors(lambda: composing):
        require_checkout()
        arguments = sys.argv[1:] = flags_first(tidy(sys.argv[1:]))
        distributed.start()
        if value_of(arguments, "resume") is not None:
            if sweeping:
                raise UserError("resume=…: continues one run; it cannot be part of a sweep")
            parser = argparse.ArgumentParser(add_help=False)
            parser.add_argument("-cd", "--config-dir")  # of no use here: the run's configuration is whole
            cfg = compose.compose(parser.parse_known_args(arguments)[1])
            composing = False
            home = run_directory.config_of(cfg.resume)
            if home is None:
                reason = "lies in no run directory that could go on; init_from=FILE starts a new run from its weights"
                raise UserError(f"resume={cfg.resume}: {reason}")
            job(cfg, home.parent.resolve())
            distributed.stop()
            return

        @wraps(job)
        def inside_hydra(cfg: DictConfig) -> Any:
            nonlocal composing
            composing = False
            run_dir = Path(HydraConfig.get().runtime.output_dir)
            cfg.experiment = HydraConfig.get().runtime.choices.get("experiment")
            compose.settle(cfg, HydraConfig.get().overrides.task)
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                return multirun.work(job, cfg, run_dir)
            try:
                # Here, since Hydra would print a line of its own and exit 1.
                with guard(RESUME), translate_hydra_errors():
                    return job(cfg, run_dir)
            except SystemExit:
                NewRunDirectory.remove_unused()
                raise

        start = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(inside_hydra)
        with hydra_raises(), terminal.fitted() if {"-h", "--help"} & set(arguments) else nullcontext():
            multirun.run(arguments, start) if sweeping else start()
        distributed.stop()


@contextmanager
def hydra_raises() -> Iterator[None]:
    """Inside, Hydra raises what it would otherwise print, for the guard to word; the variable is then as it was."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
