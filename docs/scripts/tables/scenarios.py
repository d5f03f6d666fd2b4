"""Keeps the scores of runs on many scenarios in files, and makes tables of docs/defaults.md and results.md from them.

    python docs/scripts/tables/scenarios.py SCORES.csv… [FOLDER…]

FOLDER: sweeps whose runs are added to the first SCORES.csv, each judged by the mode of its policy and by samples, and
each scenario by uniform actions and by VMAS's own scripted policy where it brings one (the same 200 episodes each).
What the file has already is not judged again. The tables are of all that the file holds, algorithm by algorithm: two
settings side by side, then all scenarios. Of several files there is one table: all algorithms side by side, on the
scenarios that all have.
"""

import csv
import io
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from agents.deploy.zoo_card import rebuilt
from agents.evaluation.episodes import report
from agents.tasks.episode_evaluation import EpisodeEvaluation
from marl.checkpoints.transfer import load_policy
from marl.config import compose
from marl.core.errors import UserError
from marl.core.files import write as write_file
from marl.launch import cli
from marl.report import statistics
from marl.report.runs import algorithm_of

COLUMNS = ("scenario", "algorithm", "settings", "seed", "frames", "mode", "samples", "seconds")
EPISODES, SEED = 200, 3_000_000  # of what is judged here
OLD, NEW = "defaults_0_1", "normalized"
FILE = "defaults"  # those of conf/algo, of algorithms that have no other
SETTINGS = {
    OLD: {"normalize_observation": False, "value_norm": "none", "init": "default", "last_gain": None},
    NEW: {"normalize_observation": True, "value_norm": "running", "init": "orthogonal", "last_gain": 0.01},
}
BASELINES = ("random", "scripted")
PPO = ("ippo", "mappo")
Row = dict[str, Any]


def settings(config: Mapping[str, Any], algorithm: str) -> str:
    """Which settings a run has: PPO those of version 0.1 or the normalised ones, others their file's. UserError."""
    algo = config["algo"]
    if algorithm not in PPO:
        whole = compose.compose([f"algo={algorithm}"])
        changed = [f"{part}.{name}" for part in ("algo", "network") for name in differing(config[part], whole[part])]
        if changed:
            raise UserError(f"{', '.join(changed)}: differ from algo={algorithm}, whose own settings are compared here")
        return FILE
    found = {key: algo.get(key) for key in ("normalize_observation", "value_norm")}
    found |= {key: config["network"].get(key) for key in ("init", "last_gain")}
    for name, wanted in SETTINGS.items():
        if found == wanted:
            return name
    raise UserError(f"{found}: are the settings of neither {OLD} nor {NEW}, which are all that is compared")


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of what two sections do not share."""
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def mean_return(task: EpisodeEvaluation, deterministic: bool = True, random: bool = False) -> float:
    """The mean return of the episodes that everyone is judged by here."""
    return float(report(task.run_episodes(EPISODES, SEED, deterministic, random))["episode_return"]["mean"])


def scripted(run: Path) -> float | None:
    """The mean return of VMAS's own policy on a run's scenario; None where it brings none, or one that can't run here.

    Raises UserError.
    """
    try:
        players = [f"+groups.{name}.eval_policy=heuristic" for name in rebuilt(run).spec.groups]
        return mean_return(rebuilt(run, players))
    except UserError as error:
        if "has no policy of its own" in str(error):
            return None
        if "own policy needs" in str(error):  # a package: navigation's is written for cvxpy
            print(f"{run}: {error}", file=sys.stderr, flush=True)
            return None
        raise


class Judge:
    """Judges runs; of a scenario and settings the environments are made once."""

    def __init__(self) -> None:
        self.tasks: dict[tuple[str, str], EpisodeEvaluation] = {}

    def task(self, run: Path, scenario: str, name: str) -> EpisodeEvaluation:
        """The task of a run with the run's policy in it."""
        if (scenario, name) not in self.tasks:
            self.tasks[scenario, name] = rebuilt(run)
        load_policy(self.tasks[scenario, name], run / "checkpoints" / "last.safetensors")
        return self.tasks[scenario, name]

    def rows(self, run: Path, known: Mapping[tuple, Row]) -> list[Row]:
        """The rows of a run: those of its scenario's baselines and its own, unless they are known."""
        config = yaml.safe_load((run / "config.yaml").read_text())
        summary = json.loads((run / "summary.json").read_text())
        base = {"scenario": config["env"]["scenario"], "algorithm": algorithm_of(config["algo"])}
        base |= {"settings": settings(config, base["algorithm"]), "seed": summary["seed"]}
        if key(base) in known:
            if int(frames := known[key(base)]["frames"]) != summary["frames"]:
                raise UserError(f"{run}: trained for {summary['frames']} frames; the run that is kept for {frames}")
            return []
        task = self.task(run, base["scenario"], base["settings"])
        rows = []
        for name in BASELINES:
            row = {"scenario": base["scenario"], "algorithm": name, "settings": "", "seed": 0}
            if key(row) not in known:
                rows.append(row | {"mode": mean_return(task, random=True) if name == "random" else scripted(run)})
        seconds = summary["seconds"]["collect"] + summary["seconds"]["update"]
        judged = {"mode": mean_return(task), "samples": mean_return(task, deterministic=False)}
        return [*rows, base | {"frames": summary["frames"], "seconds": seconds} | judged]


def key(row: Mapping[str, Any]) -> tuple:
    """What a row is of."""
    return row["scenario"], row["algorithm"], row["settings"], int(row["seed"])


def read(path: Path) -> dict[tuple, Row]:
    """The rows of a file of scores; none where there is no file yet."""
    if not path.is_file():
        return {}
    with open(path, newline="") as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    for row in rows:
        for name in ("mode", "samples", "seconds"):
            row[name] = float(row[name]) if row[name] else None
    return {key(row): row for row in rows}


def write(path: Path, rows: Mapping[tuple, Row]) -> None:
    """The same file, sorted, with seven digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS], lineterminator="\n")
    writer.writeheader()
    for _, row in sorted(rows.items()):
        writer.writerow({name: f"{value:.7g}" if isinstance(value, float) else value for name, value in row.items()})
    write_file(path, text.getvalue().encode())


def shown(values: np.ndarray) -> str:
    """IQM over the runs with its 95 % bootstrap interval."""
    low, high = statistics.interval(statistics.iqm, [values])
    return f"**{statistics.iqm([values]):.3g}** [{low:.3g}, {high:.3g}]"


def row_of(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def tables(rows: Mapping[tuple, Row], algorithm: str) -> list[str]:
    """The lines of both tables of an algorithm."""
    runs: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for _, row in sorted(rows.items()):  # the bootstrap follows their order
        if row["algorithm"] == algorithm:
            runs[row["scenario"], row["settings"]].append(row)
    names = [name for name in (OLD, NEW, FILE) if any(kept == name for _, kept in runs)]  # that there are runs of
    columns = ["scenario", "random", "scripted"]
    for name in names:
        columns += [f"`{name}`", "its samples"]
    columns += ["P(better)", "seeds"] if len(names) > 1 else ["seeds"]
    lines = [row_of(columns), "|---" * len(columns) + "|"]
    strata: dict[str, list[np.ndarray]] = {OLD: [], NEW: []}
    flat = []  # scenarios on which no run is above the random policy
    for scenario in sorted({scenario for scenario, _ in runs}):
        baselines = [rows.get((scenario, name, "", 0), {}).get("mode") for name in BASELINES]
        cells = ["–" if score is None else f"{score:.3g}" for score in baselines]
        modes = {name: np.array([row["mode"] for row in runs[scenario, name]]) for name in names}
        for name in names:
            if not modes[name].size:
                cells += ["–", "–"]
                continue
            samples = np.array([row["samples"] for row in runs[scenario, name]])
            cells += [shown(modes[name]), f"{statistics.iqm([samples]):.3g}"]
        if len(names) > 1 and all(modes[name].size for name in names):
            cells.append(f"{statistics.improvement(modes[NEW], modes[OLD]):.2f}")
            best = max(scores.max() for scores in modes.values())
            if baselines[0] is None or best <= baselines[0]:
                flat.append(scenario)
            else:
                for name in names:
                    strata[name].append(statistics.normalise(modes[name], baselines[0], best))
        elif len(names) > 1:
            cells.append("–")
        lines.append(row_of([scenario, *cells, ", ".join(dict.fromkeys(str(modes[name].size) for name in names))]))
    return [*lines, "", *over_all(strata, flat)]


def beside(rows: Mapping[tuple, Row]) -> list[str]:
    """The lines of one table of all algorithms by their modes, and how each does over the scenarios."""
    runs: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for _, row in sorted(rows.items()):
        if row["algorithm"] not in BASELINES:
            runs[row["algorithm"], row["settings"]][row["scenario"]].append(row)
    names = [f"{algorithm.upper()} `{kept}`" for algorithm, kept in runs]
    shared = sorted(set.intersection(*({*scenarios} for scenarios in runs.values())))
    lines = [row_of(["scenario", "random", *names]), "|---" * (len(runs) + 2) + "|"]
    strata: list[list[np.ndarray]] = [[] for _ in runs]
    for scenario in shared:
        scores = [np.array([row["mode"] for row in scenarios[scenario]]) for scenarios in runs.values()]
        low, high = rows[scenario, "random", "", 0]["mode"], max(each.max() for each in scores)
        lines.append(row_of([scenario, f"{low:.3g}", *map(shown, scores)]))
        if high > low:
            for kept, each in zip(strata, scores, strict=True):
                kept.append(statistics.normalise(each, low, high))
    cells = ["IQM over all", "0"]
    for kept in strata:
        low, high = statistics.interval(statistics.iqm, kept)
        cells.append(f"**{statistics.iqm(kept):.3f}** [{low:.3f}, {high:.3f}]")
    return [*lines, row_of(cells)]


def over_all(strata: Mapping[str, Sequence[np.ndarray]], flat: Sequence[str]) -> list[str]:
    """The lines of the table over all scenarios; none without scenarios."""
    if not strata[OLD]:
        return []
    lines = [f"Over {len(strata[OLD])} scenarios, 0 = the random policy, 1 = the best run of either:", ""]
    lines += ["| settings | IQM | mean | median | optimality gap |", "|---|---|---|---|---|"]
    for name, scores in strata.items():
        cells = []
        for statistic in (statistics.iqm, statistics.mean, statistics.median, statistics.optimality_gap):
            low, high = statistics.interval(statistic, scores)
            cells.append(f"{statistic(scores):.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    chance = float(statistics.probability_of_improvement(strata[NEW], strata[OLD]))
    low, high = statistics.improvement_interval(strata[NEW], strata[OLD])
    lines += ["", f"P(`{NEW}` better) {chance:.2f} [{low:.2f}, {high:.2f}]."]
    if flat:
        lines.append(f"Left out, since no run is above the random policy: {', '.join(flat)}.")
    return lines


def main(arguments: Sequence[str]) -> None:
    """Add runs, then print the tables. Raises UserError."""
    files = [Path(each) for each in arguments if each.endswith(".csv")]
    folders = [each for each in arguments if not each.endswith(".csv")]
    if not files:
        raise UserError(f"the file of scores is missing: {__doc__.splitlines()[2].strip()}")
    path, rows = files[0], read(files[0])
    runs = sorted(run.parent for folder in folders for run in Path(folder).rglob("summary.json"))
    if folders and not runs:
        raise UserError(f"{folders[0]}: holds no run that has ended (no summary.json)")
    judge = Judge()
    for run in runs:
        if found := judge.rows(run, rows):
            rows |= {key(row): row for row in found}
            write(path, rows)
            print(f"{run}: {found[-1]['mode']}", file=sys.stderr, flush=True)
    if len(files) > 1:
        print("\n".join(beside({name: row for file in files for name, row in read(file).items()})))
        return
    for algorithm in sorted({row["algorithm"] for row in rows.values()}.difference(BASELINES)):
        print("\n".join([f"{algorithm}:", "", *tables(rows, algorithm), ""]))


if __name__ == "__main__":
    with cli.guard():
        main(sys.argv[1:])
