"""Trains what the configuration describes; `python scripts/train.py --help` shows what can be said."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.text import Text
from rich.tree import Tree

from marl.callbacks.base import Callback
from marl.checkpoints.resume import resumed
from marl.config import compose, saved_config
from marl.core import distributed, run_directory, terminal
from marl.core.errors import UserError
from marl.inspection import model_summary
from marl.launch import build, run
from marl.task import Task

# Environments of which there are pictures; in a page runs the first kind.
DRAWN = ("envs.vmas.env.VmasEnv", "envs.adapters.gymnasium_env.GymnasiumEnv",
         "envs.adapters.gymnasium_env.PettingZooEnv")  # fmt: skip
LAYERS = 24  # of one network in the table at the start


def train(cfg: DictConfig, run_dir: Path, callbacks: Sequence[Callback] = ()) -> float | None:
    """Compose, check, build, fit, evaluate: the run ends in `run_dir`; returns its best monitored metric.

    `callbacks` join those of the configuration.

    Raises:
        UserError: a mistake in the configuration, before anything expensive starts.
    """
    config = compose.check(cfg)
    if config["ckpt"]:
        raise UserError("ckpt=…: scripts/evaluate.py reads it; here resume=RUN_DIR or init_from=RUN_DIR is meant")
    new = not config["resume"] and not distributed.restarted() and not (run_dir / "job.json").exists()
    with run_directory.exclusive(run_dir, new, needed=distributed.main()) as lease:
        trainer = build.build_trainer(config)
        content = resumed(config, run_dir)
        # What is kept says nothing of the interruption: a resumed run ends like one that ran through.
        saved = {**config, "resume": None, "paths": {**(config["paths"] or {}), "run_dir": str(run_dir)}}
        if content is None and distributed.main():  # before kernels are compiled: a killed run begins from it again
            saved_config.write_config(run_dir, saved)
        task = build.build_task(config)
        config = saved
        setup = build.build_setup(config)
        setup["callbacks"] += callbacks
        updater = trainer.build_updater(task, setup.pop("optimizer"), setup.pop("schedule"))  # mistakes are told first
        if distributed.main():
            show(config)
            saved_config.write_config(run_dir, config)
            show_networks(task)
        lease.begin()
        summary = trainer.fit(task, run_dir, updater=updater, resume=content, **setup)
        if distributed.main():
            report(summary, run_dir)
            if not (run_dir / "job.json").exists():  # a sweep has many, and one report
                show_next(config, run_dir)
        return trainer.best["value"] if trainer.best else None


def show(config: dict) -> None:
    """Print the configuration as a tree, once."""
    tree = Tree("configuration", guide_style="dim")
    for key, value in config.items():
        if isinstance(value, dict) and value:
            tree.add(Text(key, "bold")).add(Text(OmegaConf.to_yaml(value).rstrip()))
        elif value is not None:
            tree.add(Text.assemble((key, "bold"), f": {value}"))
    terminal.console().print(tree)


def show_networks(task: Task) -> None:
    """Print the layers of every network: shapes, parameters, FLOPs."""
    table = terminal.table("layer", "kind", "output", "parameters", "FLOPs per row", title="networks")
    networks = model_summary.networks(task.loss)
    repeated = {name for name in networks if re.search(r"\.networks\.[1-9]\d*$", name)}  # of agents with one each
    for name, layers in networks.items():
        if name in repeated:
            continue
        if isinstance(layers, str):
            table.add_row(name, layers)
            continue
        table.add_row(name, style="bold")
        for layer in layers[:LAYERS]:
            size = f"{layer.parameters + layer.frozen:,}" + (" frozen" if layer.frozen else "")
            table.add_row(f"  {layer.name}", layer.kind, "×".join(map(str, layer.shape[1:])), size,
                          f"{layer.flops:,.0f}")  # fmt: skip
        if len(layers) > LAYERS:
            table.add_row(f"  … {len(layers) - LAYERS} more: scripts/show.py model")
        total = sum(layer.parameters + layer.frozen for layer in layers)
        copies = 1 + sum(other.rpartition(".")[0] == name.rpartition(".")[0] for other in repeated)
        flops = f"{sum(layer.flops for layer in layers):,.0f}"
        label = "in all" if copies == 1 else f"in all, {copies} such"
        table.add_row(f"  {label}", "", "", f"{total:,}", flops)
    terminal.console().print(table)


def report(summary: dict, run_dir: Path) -> None:
    """Print the last evaluation, the time it took and where everything lies."""
    for key, value in summary["final"].items():
        if isinstance(value, dict):
            print(f"{key}: {value['mean']:.4g}  ({value['episodes']} episodes, IQM {value['iqm']:.4g})")
        else:
            print(f"{key}: {value:.4g}")
    print(f"took {summary['seconds']['total']:.1f} s; results in {run_dir}")


def show_next(config: dict, run_dir: Path) -> None:
    """Print what to type next, as it can be typed here."""
    target = (config["env"] or {}).get("_target_")
    names = ["evaluate", *["replay"] * (target in DRAWN), *["play"] * (target == DRAWN[0])]
    print("next:")
    for name in names if target else ["evaluate", "explain"]:
        print(f"  python {here(Path(__file__).with_name(f'{name}.py'))} ckpt={here(run_dir)}")


def here(path: Path) -> str:
    """A path as a shell takes it, from the working directory where it lies below or beside that."""
    relative = os.path.relpath(path)
    return shlex.quote(relative if len(relative) < len(str(path)) else str(path))


if __name__ == "__main__":
    run.run(train)
