"""What a sweep's files say of its jobs: which they are, in whatever order they were given, and how far each is."""

import csv
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from marl.core.errors import Damaged, UserError
from marl.core.files import read_json, reason, set_aside


def canonical(overrides: Sequence[str]) -> tuple[str, ...]:
    """Overrides in an order that does not depend on the one they were given in, unless that decides what they mean."""
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    for i, key in enumerate(keys):
        if "{" in overrides[i] and any(other.startswith(f"{key}.") for other in keys) or key in keys[:i]:
            return tuple(overrides)  # a later value replaces an earlier one's, or a part of it
    return tuple(sorted(overrides))


def place(folder: Path, number: int, overrides: Sequence[str]) -> tuple[int, list[str]]:
    """A job's number and overrides in the sweep in `folder`, which may have been begun in another order."""
    jobs, mine = recorded(folder) or [], canonical(overrides)
    same = [i for i, job in enumerate(jobs) if canonical(job) == mine]
    if not same:
        return number, list(overrides)
    number = number if number in same else same[0]
    return number, jobs[number]


def recorded(folder: Path) -> list[list[str]] | None:
    """The jobs in `sweep.json`; None where there is none. Raises UserError for a damaged one, or one of others."""
    try:
        jobs = read_json(folder / "sweep.json").get("jobs")
    except FileNotFoundError:
        return None
    if not isinstance(jobs, list) or not all(isinstance(o, str) for job in jobs for o in job):
        raise UserError(
            f"{folder / 'sweep.json'}: is no list of a sweep's jobs; take another folder (hydra.sweep.dir=PATH)"
        )
    return jobs


def recorded_command(folder: Path) -> list[str]:
    """The command in `sweep.json`."""
    return [str(o) for o in read_json(folder / "sweep.json").get("command") or ["of another command"]]


def read(folder: Path, aside: bool = False) -> dict:
    """`job.json`, or nothing where there is none or a damaged one: the job is not done.

    Args:
        aside: keep a damaged one as job.json.damaged, and say so.
    """
    try:
        return read_json(folder / "job.json")
    except FileNotFoundError:
        return {}
    except Damaged as error:
        if aside:
            set_aside(folder / "job.json", f"{error}; the job counts as not done")
        return {}


def progress(folder: Path) -> dict[str, Any]:
    """How far a job has come, from the last rows of its `metrics.csv`: "so_far" as text, the "last" score."""
    path = folder / "metrics.csv"
    return _last_rows(path, path.stat().st_mtime_ns) if path.exists() else {"so_far": None, "last": None}


@lru_cache(maxsize=1024)
def _last_rows(path: Path, changed: int) -> dict[str, Any]:
    """`progress` of a file as it was when it was last `changed`."""
    try:
        text = path.read_text()
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))  # the last line may be half written
        last = rows[-1] if rows else {}
        unit = next((unit for unit in ("frames", "epochs", "batches") if last.get(unit)), None)
        scores = [row["eval/episode_return"] for row in rows if row.get("eval/episode_return")]
        so_far = f"{float(last[unit]):,.0f} {unit}" if unit else None
        return {"so_far": so_far, "last": float(scores[-1]) if scores else None}
    except (OSError, ValueError, csv.Error) as error:  # the table goes on without it
        return {"so_far": f"{path.name} cannot be read: {reason(error)}", "last": None}
