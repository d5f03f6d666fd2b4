"""Overrides through composition and checking, in this process: what `run.run` does, with the check as its job."""

import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from marl.config import compose, conf_tree
from marl.launch import cli, run
from tests.trials.fuzzing.outcome import Outcome
from tests.trials.fuzzing.scripts import script
from tests.trials.fuzzing.values import SWEEPS, misspelt, odd

SECONDS = 60  # that composing and checking may take, on a machine that has other work
GROUPS = sorted(path.name for path in conf_tree.CONF.iterdir() if path.is_dir())
EXPERIMENTS = conf_tree.group_options("experiment")
BASES = [
    *([f"experiment={name}"] for name in EXPERIMENTS),
    [], ["algo=mappo"], ["algo=ippo", "env=vmas/navigation"], ["env=gymnasium"], ["env=gymnasium_vector"],
    ["env=pettingzoo"],
    ["env=torchrl"], ["experiment=digits", "data=csv"], ["experiment=digits", "data=npz"], ["experiment=digits",
    "data=idx"],
    ["experiment=digits", "data=image_folder"], ["logger=many"], ["logger=wandb"], ["logger=mlflow"], ["trainer=ddp"],
    ["trainer=gpu"],
    ["debug=fast_dev_run"], ["debug=overfit"], ["debug=profiler"], ["callbacks=replay"], ["callbacks=early_stopping"],
    *([f"scheduler={name}"] for name in conf_tree.group_options("scheduler")),
    *([f"optimizer={name}"] for name in conf_tree.group_options("optimizer")),
    *([f"network={name}"] for name in conf_tree.group_options("network")),
]  # fmt: skip
HYDRA = ["hydra", "hydra.run.dir", "hydra.run", "hydra.sweep.dir", "hydra.job.name", "hydra.job.num", "hydra.mode",
         "hydra.verbose",
         "hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra.searchpath", "hydra.output_subdir",
         "hydra.job.chdir",
         "hydra.launcher.n_jobs", "hydra.nothing", "hydra/nothing"]  # fmt: skip
FLAGS = ["-m", "--multirun", "--cfg", "-c", "--resolve", "--info", "--package", "-p", "--config-dir", "-cd",
         "--config-name", "-cn",
         "--config-path", "--nothing", "-x", "--experimental-rerun", "--run", "-r", "--", "-"]  # fmt: skip
OTHERS = ("evaluate", "explain", "export", "play", "record", "replay", "report", "crossplay", "elo", "tune", "show")


@cache
def keys(base: tuple[str, ...]) -> list[str]:
    """Every dotted key of a composed configuration, with those of mappings within it."""
    paths: list[str] = []

    def walk(node: object, path: str) -> None:
        if path:
            paths.append(path)
        for key, value in node.items() if isinstance(node, dict) else ():
            walk(value, f"{path}.{key}" if path else key)

    walk(OmegaConf.to_container(compose.compose(base), resolve=False), "")
    return paths


def generate(dice: random.Random, run: str) -> tuple[str, list[str]]:
    """A script's name and its arguments: good ones as a base, and one to three that are odd. run: a run directory."""
    if dice.random() < 0.15:
        return other(dice, run)
    base = dice.choice(BASES)
    resumed = dice.random() < 0.08
    arguments = [f"resume={run}"] if resumed else list(base)
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        arguments.insert(dice.randrange(len(arguments) + 1), one(dice, tuple(base)))
    return "train", arguments


def one(dice: random.Random, base: tuple[str, ...]) -> str:
    """An odd argument."""
    key, value, form = dice.choice(keys(base)), odd(dice, (SWEEPS,) if dice.random() < 0.8 else ()), dice.random()
    if form < 0.50:
        return f"{key}={value}"
    if form < 0.56:
        return f"{misspelt(dice, key)}={value}"
    if form < 0.64:
        return f"{dice.choice(['+', '++', '~', '@', '-', '~~', '+++'])}{key}={value}"
    if form < 0.67:
        return f"~{key}"
    if form < 0.72:
        name = dice.choice([dice.choice(conf_tree.group_options(dice.choice(GROUPS))), value])
        group = f"{dice.choice(GROUPS)}{dice.choice(['', '', '@', '@x', '@a.b', '/x'])}"
        return f"{dice.choice(['', '+', '++', '~'])}{group}={name}"
    if form < 0.76:
        return f"{key}.{dice.choice(['x', '0', '_target_', '_partial_', '_args_', 'kwargs.x', ''])}={value}"
    if form < 0.79:
        return f"{key}[{dice.randrange(3)}]={value}"
    if form < 0.84:
        return f"{dice.choice(HYDRA)}={value}"
    if form < 0.88:
        return f"{dice.choice(['resume', 'init_from', 'ckpt'])}={value}"
    if form < 0.91:
        return dice.choice(FLAGS)
    if form < 0.94:
        return value
    return f"{dice.choice(['nothing', 'a.b.c', 'x', 'import', '0', 'ü', 'a-b', 'a b', ''])}={value}"


def other(dice: random.Random, run: str) -> tuple[str, list[str]]:
    """Another script with odd options."""
    name = dice.choice(OTHERS)
    good = {"report": [run], "crossplay": [run, run], "elo": [run], "tune": ["study=balance_ppo"], "show": ["schedule"]}
    arguments = list(good.get(name, [f"ckpt={run}"]))
    options = getattr(script(name), "Options", None)
    names = list(options.__dataclass_fields__) if options else ["out"]
    for _ in range(dice.choice([1, 1, 2])):
        if dice.random() < 0.7:
            key = dice.choice(names) if dice.random() < 0.85 else misspelt(dice, dice.choice(names))
            override = f"{key}={odd(dice)}"
        else:
            override = one(dice, ())
        arguments.insert(dice.randrange(len(arguments) + 1), override)
    return name, arguments


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so long."""

    def ring(*_: object) -> None:
        raise NoAnswer

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class NoAnswer(BaseException):
    """It took too long; no `except Exception` of the code under test catches it."""


def check(cfg: DictConfig, run_dir: Path) -> None:
    """The job: what every script does first with a configuration."""
    compose.check(cfg)


def work(name: str, arguments: list[str]) -> None:
    """Compose and check as scripts/NAME.py does, up to where the expensive part begins."""
    if name == "train":
        run.run(check)
        return
    module = script(name)

    def job(arguments: list[str]) -> None:
        if name == "show":
            compose.check(compose.compose([text for text in arguments[1:] if not text.startswith("out=")]))
        elif hasattr(module, "parse"):
            parsed = module.parse(arguments)
            if name == "evaluate":
                options, overrides = parsed[0], parsed[-1]
                compose.check(compose.saved(options.ckpt, overrides))
        else:
            from marl.config import options as parser

            if name == "tune":
                parser.split(module.Options, arguments)
            else:
                parser.parse(module.Options, arguments)

    cli.main(module.__doc__, job)


def attempt(name: str, arguments: list[str], folder: Path) -> Outcome:
    """Do it in `folder`, which is emptied before and after."""
    before = os.getcwd(), sys.argv, list(sys.path), os.environ.copy()
    place = folder / "a" / "b"  # so that ../../x stays inside
    shutil.rmtree(folder, ignore_errors=True)
    place.mkdir(parents=True)
    out, err, code, began = StringIO(), StringIO(), 0, time.perf_counter()
    try:
        os.chdir(place)
        sys.argv = [f"{name}.py", *arguments]
        with redirect_stdout(out), redirect_stderr(err), alarm(SECONDS):
            try:
                work(name, arguments)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
            except Exception:
                traceback.print_exc()
                code = 1
    except NoAnswer:
        code = None
    finally:
        os.chdir(before[0])
        sys.argv, sys.path[:] = before[1], before[2]
        os.environ.clear()
        os.environ.update(before[3])
        shutil.rmtree(folder, ignore_errors=True)
    command = ["python", f"scripts/{name}.py", *arguments]
    return Outcome(command, code, out.getvalue(), err.getvalue(), time.perf_counter() - began)
