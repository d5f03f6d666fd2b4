"""Finds runs to report on, in folders, sweeps, globs and marl-eval files, and tells variants apart by name."""

import glob
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from marl.core.errors import UserError
from marl.report import marl_eval
from marl.report.runs import Run, read

LONG = 60  # characters of settings in a name, from which variants are numbered instead
MARKS = ("metrics.csv", "job.json", "summary.json", "checkpoints")  # what tells a run directory from other folders


def find(places: Sequence[str | Path], imported: str | None = None) -> tuple[list[Run], list[str]]:
    """All runs in `places`: run directories, folders of them (sweeps), marl-eval JSON files, and globs of these.

    The metrics.json of an earlier report counts only where the file itself is named.
    `imported` is added to the names of algorithms from marl-eval files; see `tell_apart`.

    Returns:
        The runs, and a sentence for each one that was left out (failed, unfinished, never evaluated, or damaged).

    Raises:
        UserError: a place that doesn't exist, or nothing to report on.
    """
    runs, left_out, seen = [], [], set()
    for place in places:
        expanded = [Path(p) for p in sorted(glob.glob(str(place), recursive=True))] or [Path(place)]
        for path in expanded:
            if not path.exists():
                raise UserError(f"{place}: no such file or folder")
            files = [path] if path.is_file() else [file for file in sorted(path.rglob("*.json")) if not _ours(file)]
            for folder in (folder.resolve() for folder in _folders(path)):
                if folder not in seen:
                    seen.add(folder)
                    run = read(folder)
                    (left_out if isinstance(run, str) else runs).append(run)
            for file in (file.resolve() for file in files):
                if file in seen:
                    continue
                try:
                    content = marl_eval.content(file)
                    runs += marl_eval.read(content, str(file)) if content else []
                except (ValueError, TypeError, AttributeError, OSError) as error:
                    content = left_out.append(f"{file}: {error}") or {}
                if content is not None:
                    seen.add(file)
                elif path.is_file() and str(path) == str(place):
                    raise UserError(f"{file}: not a file in marl-eval's format (environment, task, algorithm, run)")
    if not runs:
        why = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f"{', '.join(map(str, places))}: no finished run with evaluations{why}")
    tell_apart(runs, imported)
    return runs, left_out


def _folders(path: Path) -> list[Path]:
    """The run directories at `path` or below it, those of failed jobs among them."""
    if _is_run(path):
        return [path]
    return sorted({file.parent for name in MARKS for file in path.rglob(name) if _is_run(file.parent)})


def _is_run(folder: Path) -> bool:
    metrics, job, *rest = ((folder / name).exists() for name in MARKS)
    return metrics or job or (any(rest) and (folder / "config.yaml").is_file())


def _ours(file: Path) -> bool:
    """Whether a report wrote this file: its runs would count twice."""
    return file.name == "metrics.json" and (file.parent / "report.html").is_file()


def tell_apart(runs: Sequence[Run], imported: str | None = None) -> None:
    """Add to the names of algorithms and tasks what differs between runs that would else share a name.

    Only settings that vary within one algorithm on one task count: keys of `env` go to the task's name, all others to
    the algorithm's; where that would be long, the variants are numbered and `Run.variant` tells what they are.
    Algorithms of marl-eval files, whose settings are unknown, get `imported` behind their names: always where it is
    given, else where one of ours has the same. Runs that can't be told apart get a seed of their own, so that none
    hides another.
    """
    ours = {run.algorithm for run in runs if run.settings}
    for run in runs:
        if not run.settings and (imported or run.algorithm in ours):
            run.algorithm += f" ({imported or 'imported'})"
    for of_env, name in ((False, "algorithm"), (True, "task")):
        together = defaultdict(list)
        for run in runs:
            together[run.algorithm, run.environment, run.task].append(run)
        for group in together.values():
            keys = dict.fromkeys(key for run in group for key in run.settings if key.startswith("env.") == of_env)
            varied = [key for key in keys if len({run.settings.get(key) for run in group}) > 1]
            variants: dict[str, int] = {}
            for run in group if varied else []:
                variant = " ".join(f"{key.rpartition('.')[2]}={run.settings.get(key, 'unset')}" for key in varied)
                number = variants.setdefault(variant, len(variants) + 1)
                if len(variant) > LONG:
                    run.variant, variant = variant, f"variant {number}"
                setattr(run, name, f"{getattr(run, name)} {variant}".replace(",", ";"))
    taken = set()
    for run in runs:
        while (run.algorithm, run.environment, run.task, run.seed) in taken:
            run.seed += 1000
        taken.add((run.algorithm, run.environment, run.task, run.seed))
