"""Makes the tables of docs/results.md that have an algorithm per row and a scenario per column.

Usage:

    python docs/scripts/tables/learning.py SWEEP…
    python docs/scripts/tables/learning.py beside FOLDER [ITERATIONS]    # see `beside`
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from marl.report.statistics import interval, iqm

SCENARIOS = ("balance", "navigation", "sampling", "mpe/simple_spread", "give_way", "dispersion")
ALGORITHMS = ("iql", "vdn", "qmix", "pqn_vdn", "iddpg", "maddpg", "matd3", "isac", "masac", "ippo", "mappo")
SIDES = {"ours": "", "end": ", `algo.time_limit=end`"}  # runs that stand beside BenchMARL's, and what they are called


def shown(values: list[float]) -> str:
    """IQM over the seeds and, of several, its 95 % interval (bootstrap over them)."""
    scores = np.array(values)
    if len(scores) == 1:
        return f"{scores[0]:.3g}"
    low, high = interval(iqm, [scores])
    return f"**{iqm([scores]):.3g}** [{low:.3g}, {high:.3g}]"


def table(sweeps: list[Path]) -> None:
    """IQM of the mean returns of the last evaluations, and the lower quartile of seconds over the runs of a row."""
    returns, seconds = defaultdict(dict), defaultdict(list)
    for run in sorted(path.parent for sweep in sweeps for path in sweep.glob("*/summary.json")):
        overrides = dict(each.split("=", 1) for each in json.loads((run / "job.json").read_text())["overrides"])
        summary = json.loads((run / "summary.json").read_text())
        name, scenario = overrides["algo"], overrides["env"].removeprefix("vmas/")
        returns[name, scenario][summary["seed"]] = summary["final"]["episode_return"]["mean"]
        seconds[name].append(summary["seconds"]["collect"] + summary["seconds"]["update"])
    print("| `algo=` | " + " | ".join(SCENARIOS) + " | seconds |")
    print("|---" * (len(SCENARIOS) + 2) + "|")
    for name in (each for each in ALGORITHMS if each in seconds):
        cells = [returns[name, scenario] for scenario in SCENARIOS]
        shows = [shown([runs[seed] for seed in sorted(runs)]) if runs else "" for runs in cells]
        print(f"| `{name}` | " + " | ".join(shows) + f" | {np.quantile(seconds[name], 0.25):.0f} |")
    counts = sorted({len(runs) for runs in returns.values()})
    print(f"\nseeds per cell: {counts}")


def ours(path: Path) -> list[float]:
    """Mean returns of the training episodes by iteration."""
    with open(path / "metrics.csv", newline="") as file:
        return [float(row["episode_return"]) for row in csv.DictReader(file) if row["episode_return"]]


def theirs(path: Path) -> list[float]:
    """The same of BenchMARL's runner."""
    return [json.loads(line)["mean_return"] for line in path.read_text().splitlines() if line.endswith("}")]


def beside(folder: Path, last: int = 5) -> None:
    """BenchMARL's runs and ours: `bm_ALGORITHM_TASK_SEED.jsonl` of its runner, `ours_ALGORITHM_TASK_SEED/metrics.csv`.

    Mean returns of the training episodes (with their exploration) that end in the `last` iterations: seed by seed, and
    their IQM where there are three. Beside each lies a file `….time`, written by `/usr/bin/time -f %U`: the processor
    seconds of the whole command. `end_ALGORITHM_TASK_SEED` are runs that take the time limit as an end, in rows of
    their own.
    """
    print("| `algo=` | scenario | BenchMARL | ours | processor seconds, BenchMARL | ours |")
    print("|---|---|---|---|---|---|")
    pairs = defaultdict(list)
    for path in sorted(folder.glob("bm_*_*_*.jsonl")):
        name, rest = path.stem.removeprefix("bm_").split("_", 1)
        task = rest.rsplit("_", 1)[0]
        for side, what in SIDES.items():
            other = folder / f"{side}_{path.stem[3:]}"
            if (other / "summary.json").is_file():
                times = [float(each.with_suffix(".time").read_text()) for each in (path, other)]
                pairs[name, task + what].append((theirs(path), ours(other), *times))
    for (name, what), runs in sorted(pairs.items()):
        sides = [[float(np.nanmean(run[side][-last:])) for run in runs] for side in (0, 1)]
        seeds = [", ".join(f"{value:.3g}" for value in values) for values in sides]
        if len(runs) > 2:
            seeds = [f"{shown(values)}: {each}" for values, each in zip(sides, seeds, strict=True)]
        times = [f"{np.mean([run[side] for run in runs]):.0f}" for side in (2, 3)]
        print(f"| `{name}` | {what} | {' | '.join(seeds)} | {' | '.join(times)} |")


if __name__ == "__main__":
    if sys.argv[1] == "beside":
        beside(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        table([Path(each) for each in sys.argv[1:]])
