"""Judges a trained run: python scripts/evaluate.py ckpt=RUN_DIR [option=value …] [configuration key=value …]

  ckpt=RUN_DIR|FILE    a run directory, or one of its checkpoints (required)
  which=last           last | best: which checkpoint of a run directory
  policy=trained       trained | untrained (fresh networks) | random (uniform actions): baselines for comparison
  episodes=null        episodes, played at once; null: as many as in the run's own evaluations (200)
  deterministic=null   true: the policy's mode | false: samples; null: as in the run's own evaluations (true)
  seed=null            seed of the episodes; null: that of the run's own evaluations, which gives the same numbers
  out=null             where to write the result; null: evaluation.json beside the checkpoint

Any other key=value changes the run's configuration, for example env.max_steps=200 or device=cpu.
"""

import os
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field
from rich.console import Console
from rich.table import Table

from agents.evaluate import report
from agents.on_policy import OnPolicy
from envs.base import EnvError
from marl import checkpoint, compose
from marl.errors import UserError
from marl.schema import check_arguments
from marl.summary import write_json
from marl.task import Task


@dataclass
class Options:
    """The options above."""

    ckpt: str
    which: Literal["last", "best"] = "last"
    policy: Literal["trained", "untrained", "random"] = "trained"
    episodes: Annotated[int, Field(ge=1)] | None = None
    deterministic: bool | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    out: str | None = None


def parse(arguments: list[str]) -> tuple[Options, list[str]]:
    """Options and, apart, the overrides of the run's configuration. Raises UserError for a wrong option."""
    names = {field.name for field in fields(Options)}
    own = [a.partition("=") for a in arguments if "=" in a and a.partition("=")[0] in names]
    values = {name: text if name in ("ckpt", "out") else yaml.safe_load(text) for name, _, text in own}
    check_arguments(Options, values, "")
    return Options(**values), [a for a in arguments if a.partition("=")[0] not in names]


def evaluate(options: Options, overrides: list[str]) -> dict:
    """Rebuild the task of a run, load its weights, evaluate, print a table and write the JSON file.

    Returns:
        What was written: for agents the block of `agents.evaluate.report`, for models the figures per split.

    Raises:
        UserError, EnvError: no such checkpoint, or overrides that don't fit it.
    """
    path = checkpoint.find(options.ckpt, options.which)
    cfg = compose.saved(path, [*overrides, "++strict=true"])
    cfg.resume, cfg.init_from = None, str(path) if options.policy == "trained" else None
    config = compose.check(cfg)
    compose.build_trainer(config)  # for its number of threads: sums in the same order give the same bits
    figures = judge(compose.build_task(config), options)

    name = "evaluation.json" if options.policy == "trained" else f"evaluation_{options.policy}.json"
    out = Path(options.out) if options.out else path.parent / name
    result = {**figures, "task": config["task"]["_target_"], "checkpoint": str(path), "options": asdict(options)}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    show(figures, f"{options.policy}, {path}")
    print(f"written to {out}")
    return result


def judge(task: Task, options: Options) -> dict:
    """The figures of `task` as it stands: of episodes where agents play, else of the validation and test data."""
    if isinstance(task, OnPolicy):
        random = options.policy == "random"
        return report(task.play(options.episodes, options.seed, options.deterministic, random))
    asked = {"episodes": options.episodes, "deterministic": options.deterministic, "seed": options.seed}
    for key in [key for key, value in asked.items() if value is not None]:
        raise UserError(f"{key}=…: only agents play episodes; this run's task is {task.name}")
    if options.policy == "random":
        raise UserError(f"policy=random: only agents act; this run's task is {task.name}")
    return task.summary(task.evaluate())


def show(figures: dict, title: str) -> None:
    """Print a table: the return of all, of each group and of each agent; then single figures."""
    console = Console()
    table = Table("episode return", "mean", "IQM", "std", "95 % interval of the mean", "episodes", title=title)
    for name, row in rows(figures):
        low, high = row["ci95"]
        numbers = [f"{row[key]:.3f}" for key in ("mean", "iqm", "std")]
        table.add_row(name, *numbers, f"{low:.3f} to {high:.3f}", str(row["episodes"]))
    if table.row_count:
        console.print(table)
    plain = {key: value for key, value in figures.items() if isinstance(value, float)}
    if "episode_length" in figures:
        plain["episode_length"] = figures["episode_length"]["mean"]
    for name, group in figures.get("groups", {}).items():
        plain |= {f"{name}/{key}": value for key, value in group["info"].items()}
    table = Table("figure", "mean")
    for key, value in plain.items():
        table.add_row(key, f"{value:.4f}")
    console.print(table)


def rows(figures: dict) -> list[tuple[str, dict]]:
    """Named statistics of the episode return: of all, then group by group with their agents."""
    found = [("all", figures["episode_return"])] if "episode_return" in figures else []
    for name, group in figures.get("groups", {}).items():
        found.append((name, group["episode_return"]))
        found += [(f"  {agent}", values) for agent, values in group["agents"].items()]
    return found


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv) or len(sys.argv) == 1:
        print(__doc__)
        sys.exit(0)
    sys.path.insert(0, os.getcwd())  # a user's own classes are named from the directory they work in
    with compose.guard(EnvError):
        evaluate(*parse(sys.argv[1:]))
