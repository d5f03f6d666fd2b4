"""Makes the tables of docs/results.md.

Usage:

    python docs/scripts/tables/results.py SWEEP…
    python docs/scripts/tables/results.py beside FOLDER    # see `beside`
"""

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from marl.report.runs import algorithm_of
from marl.report.statistics import interval, iqm


def shown(values: list[float]) -> str:
    """IQM over the runs, its 95 % interval (bootstrap over the runs), and each run."""
    scores = np.array(values)
    low, high = interval(iqm, [scores])
    return f"**{iqm([scores]):.3g}** [{low:.3g}, {high:.3g}] | {', '.join(f'{v:.3g}' for v in values)}"


def table(sweeps: list[Path]) -> None:
    """Every scenario and algorithm of these sweeps: frames, median seconds, mean returns of the last evaluations."""
    returns = defaultdict(dict)
    for run in sorted(path.parent for sweep in sweeps for path in sweep.glob("*/summary.json")):
        config = OmegaConf.load(run / "config.yaml")
        summary = json.loads((run / "summary.json").read_text())
        preset = f"experiment={config.experiment}" if config.experiment else f"env=vmas/{config.env.scenario}"
        key = config.env.scenario, preset, algorithm_of(config.algo), summary["frames"]
        returns[key][summary["seed"]] = (
            summary["final"]["episode_return"]["mean"],
            summary["seconds"]["collect"] + summary["seconds"]["update"],
        )
    print("| scenario | command | algorithm | frames | seconds | IQM [95 %] | seeds |")
    print("|---|---|---|---|---|---|---|")
    for (scenario, preset, algorithm, frames), runs in sorted(returns.items()):
        values = [runs[seed][0] for seed in sorted(runs)]
        seconds = float(np.median([each for _, each in runs.values()]))
        print(f"| {scenario} | `{preset}` | {algorithm.upper()} | {frames:,} | {seconds:.0f} | {shown(values)} |")


def beside(folder: Path) -> None:
    """BenchMARL's runs and ours: `bm_TASK_SEED.jsonl` of its runner, `ours_TASK_SEED/metrics.csv`.

    The mean return of the training episodes that end in the last ten iterations, of the sampled policies, both sides.
    """
    print("| scenario | side | IQM [95 %] | seeds |")
    print("|---|---|---|---|")
    peers = sorted(folder.glob("bm_*_*.jsonl"))
    for task in sorted({path.stem[3:-2] for path in peers}):
        sides = {"BenchMARL": [], "ours": []}
        for path in (p for p in peers if p.stem[3:-2] == task):
            rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            our_metrics = folder / f"ours_{path.stem[3:]}" / "metrics.csv"
            if len(rows) < 50 or not our_metrics.is_file():
                continue
            with open(our_metrics, newline="") as file:
                ours = [float(row["episode_return"]) for row in csv.DictReader(file) if row["episode_return"]]
            if len(ours) < 50:
                continue
            sides["BenchMARL"].append(float(np.nanmean([row["mean_return"] for row in rows[-10:]])))
            sides["ours"].append(float(np.nanmean(ours[-10:])))
        for side, values in sides.items():
            if values:
                print(f"| {task} | {side} | {shown(values)} |")


if __name__ == "__main__":
    if sys.argv[1] == "beside":
        beside(Path(sys.argv[2]))
    else:
        table([Path(each) for each in sys.argv[1:]])
