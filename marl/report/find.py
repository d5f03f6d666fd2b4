"""Finds runs to report on, in folders, sweeps, globs and marl-eval files, and tells variants apart by name."""

import glob
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from marl.errors import UserError
from marl.report import marl_eval
from marl.report.runs import Run, read


def find(places: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """All runs in `places`: run directories, folders of them (sweeps), marl-eval JSON files, and globs of these.

    Returns:
        The runs, and a sentence for each one that was left out (unfinished, or never evaluated).

    Raises:
        UserError: a place that doesn't exist, or nothing to report on.
    """
    runs, left_out, seen = [], [], set()
    for place in places:
        expanded = [Path(p) for p in sorted(glob.glob(str(place), recursive=True))] or [Path(place)]
        for path in expanded:
            if not path.exists():
                raise UserError(f"{place}: no such file or folder")
            tables = [path / "metrics.csv"] if (path / "metrics.csv").is_file() else sorted(path.rglob("metrics.csv"))
            files = [path] if path.is_file() else sorted(path.rglob("*.json")) if path not in seen else []
            for folder in (table.parent.resolve() for table in tables):
                if folder not in seen:
                    seen.add(folder)
                    run = read(folder)
                    (left_out if isinstance(run, str) else runs).append(run)
            for file in (file.resolve() for file in files):
                if file not in seen and (content := marl_eval.content(file)):
                    seen.add(file)
                    runs += marl_eval.read(content, str(file))
                elif path.is_file() and str(path) == str(place) and file not in seen:
                    raise UserError(f"{file}: not a file in marl-eval's format (environment, task, algorithm, run)")
    if not runs:
        why = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f"{', '.join(map(str, places))}: no finished run with evaluations{why}")
    tell_apart(runs)
    return runs, left_out


def tell_apart(runs: Sequence[Run]) -> None:
    """Add to the names of algorithms and tasks what differs between runs that would else share a name.

    Only settings that vary within one algorithm on one task count: keys of `env` go to the task's name, all others to
    the algorithm's. Runs that can't be told apart get a seed of their own, so that none hides another.
    """
    for own, name in ((False, "algorithm"), (True, "task")):
        together = defaultdict(list)
        for run in runs:
            together[run.algorithm, run.environment, run.task].append(run)
        for group in together.values():
            keys = dict.fromkeys(key for run in group for key in run.settings if key.startswith("env.") == own)
            varied = [key for key in keys if len({run.settings.get(key) for run in group}) > 1]
            for run in group:
                extra = " ".join(f"{key.rpartition('.')[2]}={run.settings.get(key, 'unset')}" for key in varied)
                if extra:
                    setattr(run, name, f"{getattr(run, name)} {extra}".replace(",", ";"))
    taken = set()
    for run in runs:
        while (run.algorithm, run.environment, run.task, run.seed) in taken:
            run.seed += 1000
        taken.add((run.algorithm, run.environment, run.task, run.seed))
