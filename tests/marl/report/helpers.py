"""Run directories whose numbers are known, as training would leave them behind."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import yaml


def write_run(
    folder: Path,
    returns: Sequence[float],
    seed: int = 0,
    critic: str = "concat",
    scenario: str = "balance",
    finished: bool = True,
    agents: dict[str, Sequence[float]] | None = None,
    **settings,
) -> Path:
    """A run with an evaluation every 100 frames and 2 seconds; `settings` go into the configuration's `algo`."""
    (folder / "checkpoints").mkdir(parents=True)
    config = {
        "seed": seed,
        "name": scenario,
        "paths": {"run_dir": str(folder)},
        "task": {"_target_": "agents.tasks.on_policy.OnPolicy"},
        "env": {"_target_": "envs.vmas.env.VmasEnv", "scenario": scenario, "num_envs": 4},
        "algo": {"_target_": "agents.algorithms.ppo.PPO", "critic": critic, **settings},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    columns = {"eval/episode_return": returns}
    columns |= {f"eval/agents/{name}/episode_return": values for name, values in (agents or {}).items()}
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", "frames", *columns, "seconds"])
        for i in range(len(returns)):
            writer.writerow([2 * i + 1, 100 * i + 50, *("" for _ in columns), 2 * i + 1])  # not evaluated
            writer.writerow([2 * i + 2, 100 * i + 100, *(v[i] for v in columns.values()), 2 * i + 2])
    if finished:
        (folder / "summary.json").write_text("{}")
    return folder


def absolute(folder: Path, value: float) -> None:
    """What `evaluate.py absolute=true` adds to a run."""
    content = {"episode_return": {"mean": value}, "groups": {}}
    (folder / "checkpoints" / "evaluation_absolute.json").write_text(json.dumps(content))


def change(folder: Path, **groups: dict | None) -> Path:
    """Put `groups` into the configuration of a run: env={"fast": "off"} changes one key, data=None empties a group."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for name, keys in groups.items():
        config[name] = keys and {**(config.get(name) or {}), **keys}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder
