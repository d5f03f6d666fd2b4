"""`train.py -m …`: Hydra's multirun as a sweep of `marl.launch.sweep`, one folder that the same command continues."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from marl.checkpoints import checkpoint_file
from marl.config import compose
from marl.config.hydra_errors import HYDRA_ERRORS, translate_hydra_errors
from marl.config.saved_config import read_config
from marl.core.errors import Damaged, Stopped, UserError
from marl.core.files import set_aside
from marl.core.imports import find_user_modules, resolve
from marl.core.schema import signature
from marl.core.zoo import index as zoo
from marl.launch import orphans, sweep, sweep_jobs
from marl.launch.cli import SAME_COMMAND, Job, guard

# Settings of joblib's launcher; with n_jobs=1 it would run the jobs in this very process.
ONE_AT_A_TIME = ("n_jobs=2", "pre_dispatch=1", "batch_size=1")
UNDECISIVE = ("resume", "paths")  # where a run came from and goes to: no part of its result


def run(arguments: Sequence[str], start: Callable[[], Any]) -> None:
    """A whole sweep, its table shown. Raises UserError (or exits 1) at the end where jobs failed."""
    whole = begin(arguments)
    with whole.watch():
        launch(whole, start)
    whole.check()


def begin(arguments: Sequence[str]) -> sweep.Sweep:
    """The sweep that the command line describes, in its folder; the same one as before where it was begun before.

    The folder is added to `sys.argv`, for Hydra and its launchers.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-cd", "--config-dir")
    known, rest = parser.parse_known_args(arguments)
    overrides = [o for o in rest if not o.startswith("-")]
    with translate_hydra_errors():
        parsed = OverridesParser.create().parse_overrides(overrides)
        swept = [o for o in parsed if not o.key_or_group.startswith("hydra")]
        jobs = BasicSweeper.split_arguments(swept, None)[0]
    line = [str(o.input_line) for o in swept]
    place = next((o.value() for o in parsed if o.key_or_group == "hydra.sweep.dir"), None)
    if place == "":
        raise UserError("hydra.sweep.dir=: must name a folder")
    if place is not None:
        opened = sweep.Sweep(Path(str(place)).resolve(), jobs, line)
    else:
        once = [str(o.input_line) for o in swept if not o.is_sweep_override()]
        if known.config_dir:
            once.append(f"hydra.searchpath=['file://{Path(known.config_dir).resolve()}']")
        folder = Path(compose.compose(once).paths.sweep_dir).resolve()
        opened = sweep.Sweep.open(folder, jobs, line)
        sys.argv.append(f"hydra.sweep.dir='{opened.folder}'")
    opened.begin()
    return opened


def launch(sweep_begun: sweep.Sweep, start: Callable[[], Any]) -> None:
    """`start()`, Hydra's multirun; where joblib loses a worker process, go on without the job that was at fault.

    joblib ends all workers when one is killed from outside. What is left is then run one job at a time, so that the
    one that kills its process again is known and put down as failed, and after that in parallel again.
    """
    os.environ[sweep.START] = f"{os.getpid()} {time.time()}"
    arguments, alone = list(sys.argv), False
    while True:
        start_time = time.time()
        sys.argv = arguments + [f"hydra.launcher.{o}" for o in ONE_AT_A_TIME if alone]
        try:
            return start()
        except Exception as error:
            if "srun" in str(error):
                raise UserError(
                    "hydra/launcher=submitit_slurm: there is no Slurm on this machine (no srun); "
                    "hydra/launcher=submitit_local runs the jobs as processes of this machine"
                ) from error
            if type(error).__name__ not in ("TerminatedWorkerError", "BrokenProcessPool"):
                raise
            if alone and not sweep_begun.give_up(start_time):
                raise
            alone = not alone
            print("a worker process was killed; going on with the jobs that are left", flush=True)


def work(job: Job, cfg: DictConfig, run_dir: Path) -> Any:
    """`job(cfg, run_dir)` as a part of a sweep: done ones are skipped, begun ones continued, failures written down."""
    find_user_modules()  # in a worker process, too
    expected = (UserError, *HYDRA_ERRORS)
    overrides = list(HydraConfig.get().overrides.task)
    if run_dir.name.isdecimal():  # but for a hydra.sweep.subdir of the user's
        number, overrides = sweep_jobs.place(run_dir.parent, int(run_dir.name), overrides)
        run_dir = run_dir.parent / str(number)
    config = None
    with suppress(*expected):  # the job will run into the same mistake, and have it written down
        config = compose.check(cfg)
    earlier = _earlier(run_dir)
    same = earlier is not None and config is not None and _content(earlier) == _content(config)
    if same:
        cfg.resume = str(run_dir)
    parent = int(os.environ.get(sweep.START, "0").split(" ")[0] or 0)
    try:
        with orphans.at_work(parent):
            return sweep.work(run_dir, overrides, lambda: job(cfg, run_dir), same, expected)
    except Stopped:
        if parent != os.getpid():
            return None  # a worker's signal ends its job and no other's
        with guard(again=SAME_COMMAND):  # here: Hydra would keep the exception and begin the next job
            raise


def _earlier(run_dir: Path) -> dict[str, Any] | None:
    """The configuration that a job was begun with; where its file is damaged, its newest checkpoint knows it."""
    file = run_dir / "config.yaml"
    try:
        return read_config(file)
    except FileNotFoundError:
        return None
    except Damaged as error:
        if not (run_dir / "job.json").exists():
            raise
        set_aside(file, f"{error}; the job counts as not done")
    with suppress(UserError):  # all are damaged: the job begins again
        newest = checkpoint_file.newest(run_dir)
        return newest and newest[1]["config"]
    return None


def _content(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's result in its configuration. An empty key is one that an earlier version did not have."""
    left = {key: value for key, value in config.items() if key not in UNDECISIVE and value not in (None, {})}
    if not zoo.plays(config):
        left.pop("zoo", None)
    return {key: _said(value) for key, value in left.items()}


def _said(node: Any) -> Any:
    """A node without what its classes take for granted: an earlier version may not have had such a key yet."""
    if not isinstance(node, Mapping):
        return node
    taken = {}
    if "_target_" in node:
        with suppress(UserError):  # what it names is gone: all its keys are compared
            taken = signature(resolve(node["_target_"], "_target_"))
    defaults = {key: parameter.default for key, parameter in taken.items()}
    defaults |= {key: list(value) for key, value in defaults.items() if isinstance(value, tuple)}
    return {key: _said(value) for key, value in node.items() if key not in defaults or value != defaults[key]}
