"""marl-eval's JSON format (Gorsane et al. 2022), which BenchMARL and Mava write: read, and written from our runs.

{environment: {task: {algorithm: {run: {"step_0": {"step_count": 6000, "elapsed_time": 1.2, "return": [v, …]}, …,
"absolute_metrics": {"return": [v, …]}}}}}}; lists hold one value per episode, or the mean alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from marl.core.files import write_json
from marl.report.runs import Run

RETURN, THEIRS = "episode_return", "return"  # our name of the team's return, and marl-eval's


def content(path: Path) -> dict | None:
    """The file's content if it is in this format, else None. Raises ValueError where a step has no number."""
    try:
        data = json.loads(path.read_text())
        runs = [r for tasks in data.values() for algs in tasks.values() for rs in algs.values() for r in rs.values()]
        return data if runs and all("step_count" in step for run in runs for step in _steps(run)) else None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError):
        return None


def _steps(run: dict) -> list[dict]:
    steps = [(key.removeprefix("step_"), value) for key, value in run.items() if key.startswith("step_")]
    if wrong := [number for number, _ in steps if not number.isdecimal()]:
        raise ValueError(f"step_{wrong[0]}: steps are step_0, step_1, …")
    if not steps:
        raise TypeError("a run without steps")
    return [value for _, value in sorted(steps, key=lambda pair: int(pair[0]))]


def read(environments: dict, source: str) -> list[Run]:
    """The runs of a file's `content`.

    `absolute_metrics` count only where they hold more episodes than a step does: BenchMARL puts there the largest
    return of any single episode, which is not the absolute metric.
    """
    runs = []
    for environment, tasks in environments.items():
        for task, algorithms in tasks.items():
            for algorithm, seeds in algorithms.items():
                for place, (name, run) in enumerate(seeds.items()):
                    number = name.rpartition("_")[2]
                    runs.append(_run(environment, task, algorithm, int(number) if number.isdigit() else place, run))
                    runs[-1].source = f"{source}: {name}"
    return runs


def _run(environment: str, task: str, algorithm: str, seed: int, run: dict) -> Run:
    steps = _steps(run)
    names = dict.fromkeys(key for step in steps for key, value in step.items() if isinstance(value, list))
    curves = {ours(n): np.array([np.mean(step[n]) if step.get(n) else np.nan for step in steps]) for n in names}
    lengths = {name: max(len(step.get(name, [])) for step in steps) for name in names}
    absolute = {
        ours(name): float(np.mean(values))
        for name, values in run.get("absolute_metrics", {}).items()
        if len(values) > max(1, lengths.get(name, 0))
    }
    return Run(
        algorithm=algorithm,
        environment=environment,
        task=task,
        seed=seed,
        units=np.array([float(step["step_count"]) for step in steps]),
        seconds=np.array([float(step.get("elapsed_time", np.nan)) for step in steps]),
        curves=curves,
        absolute=absolute,
    )


def ours(name: str) -> str:
    """Our name for a metric of theirs: "return" -> "episode_return", "agents_return" -> "agents/episode_return"."""
    if name == THEIRS:
        return RETURN
    return f"{name.removesuffix('_return')}/{RETURN}" if name.endswith("_return") else name


def theirs(name: str) -> str:
    """The other way round."""
    if name == RETURN:
        return THEIRS
    return f"{name.removesuffix('/' + RETURN)}_return" if name.endswith(f"/{RETURN}") else name


def write(path: Path, runs: Sequence[Run]) -> dict:
    """Write `runs` for marl-eval and BenchMARL's plots; returns what was written. The means stand for the episodes.

    Only returns that every run has are written: marl-eval refuses files whose runs differ in their metrics.
    """
    whole: dict = {}
    complete = [{n for n, v in run.curves.items() if n.endswith(RETURN) and np.isfinite(v).all()} for run in runs]
    names = sorted(set.intersection(*complete))
    for run in runs:
        entry: dict = {}
        for i, (units, seconds) in enumerate(zip(run.units, run.seconds, strict=True)):
            entry[f"step_{i}"] = {"step_count": int(units), "elapsed_time": float(seconds)}
            entry[f"step_{i}"] |= {theirs(name): [float(run.curves[name][i])] for name in names}
        final = {name: run.score(name, "final") for name in names}
        entry["absolute_metrics"] = {theirs(name): [run.absolute.get(name, final[name])] for name in names}
        algorithms = whole.setdefault(run.environment, {}).setdefault(run.task, {})
        algorithms.setdefault(run.algorithm, {})[f"seed_{run.seed}"] = entry
    write_json(path, whole)
    return whole
