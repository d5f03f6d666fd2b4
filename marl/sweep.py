"""A sweep's folder: which jobs it has, how each stands (done, running, failed and why), and the table of them.

Everything is read from files, so it is the same for jobs in this process, in others and on other machines:
`sweep.json` (the jobs' overrides) and `jobs.csv` (the table) in the folder; per job `0/`, `1/`, … with `job.json`,
`output.log` (what it printed) and `job.lock`, which a running job holds locked, so that a killed one is told from it.
"""

import csv
import io
import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from marl import terminal
from marl.errors import Stopped, UserError
from marl.lock import lock, running
from marl.summary import write_json

STYLES = {"done": "green", "running": "yellow", "failed": "red", "interrupted": "magenta", "waiting": "dim"}
START = "MARL_SWEEP_START"  # environment variable: which start of the sweep a process belongs to
LOOK_EVERY = 2.0  # seconds between looks at the jobs' files


# ---- a job, in whatever process it runs ------------------------------------------------------------------------


def work(
    folder: Path, overrides: Sequence[str], call: Callable[[], Any], unchanged: bool = True, mistakes: tuple = ()
) -> Any:
    """Run one job of a sweep: `call()`, with what it prints in `output.log` and how it ended in `job.json`.

    A job that another process is at is left to it, one that is done stays so. An exception is the job's failure and
    does not leave this function; those of the classes `mistakes` are told without a traceback. A signal leaves it.

    Args:
        folder: the job's; made if missing.
        unchanged: whether what was done there earlier still holds.

    Returns:
        The call's value (a number or None), also where it was found earlier; None where the job failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder) as mine:
        if not mine:
            return None
        known = read(folder)
        start = os.environ.get(START)
        ended = unchanged and known.get("status") == "done"
        failed_just_now = start is not None and known.get("status") == "failed" and known.get("start") == start
        if (ended or failed_just_now) and known.get("overrides") == list(overrides):
            return known.get("value")
        began, record = time.time(), {"overrides": list(overrides), "began": time.time(), "start": start}
        write_json(folder / "job.json", {**record, "status": "running"})
        with open(folder / "output.log", "a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
            try:
                value = call()
                end = {"status": "done", "reason": None, "value": value}
            except Stopped as stopped:  # no failure: whoever ended it wants the next job not to begin
                end = {"status": "interrupted", "reason": stopped.where, "value": None}
                write_json(folder / "job.json", {**record, **end, "seconds": time.time() - began})
                raise
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                mistake = isinstance(error, mistakes)
                if not mistake:
                    traceback.print_exc()
                    reason = f"{type(error).__name__}: {reason}"
                print(f"error: {reason}", file=sys.stderr)
                value, end = None, {"status": "failed", "reason": reason, "mistake": mistake, "value": None}
        write_json(folder / "job.json", {**record, **end, "seconds": time.time() - began})
        return value


def read(folder: Path) -> dict:
    """`job.json`, or nothing where there is none."""
    try:
        return json.loads((folder / "job.json").read_text())
    except FileNotFoundError:
        return {}


# ---- the whole -------------------------------------------------------------------------------------------------


class Sweep:
    """The jobs of one sweep, in `folder`.

    Args:
        jobs: the overrides of every job, in order; job i lives in `folder/i`.
        command: the overrides of the whole sweep, sorted: what makes it the same sweep.
    """

    def __init__(self, folder: Path, jobs: Sequence[Sequence[str]], command: Sequence[str]):
        self.folder, self.jobs, self.command = Path(folder), [list(job) for job in jobs], sorted(command)
        common = set.intersection(*map(set, self.jobs))
        self.names = [", ".join(o for o in job if o not in common) or "all" for job in self.jobs]

    @classmethod
    def open(cls, default: Path, jobs: Sequence[Sequence[str]], command: Sequence[str]) -> "Sweep":
        """The sweep that `command` was begun as before, in a folder beside `default`; else a new one in `default`."""
        known = []
        for path in Path(default).parent.glob("*/sweep.json"):
            if json.loads(path.read_text()) == {"command": sorted(command), "jobs": [list(job) for job in jobs]}:
                known.append(path)
        newest = max(known, key=lambda path: path.stat().st_mtime, default=None)
        return cls(newest.parent if newest else default, jobs, command)

    def begin(self) -> None:
        """Write what this sweep is, for the next start of the same one. Raises UserError for another one's folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "sweep.json").exists():
            known = json.loads((self.folder / "sweep.json").read_text())
            if known["jobs"] != self.jobs:
                raise UserError(f"hydra.sweep.dir={self.folder}: holds another sweep ({' '.join(known['command'])})")
            done = sum(row["status"] == "done" for row in self.rows())
            print(f"continuing {self.folder}: {done} of {len(self.jobs)} jobs are done", flush=True)
        write_json(self.folder / "sweep.json", {"command": self.command, "jobs": self.jobs})

    def rows(self) -> list[dict]:
        """Per job: job, status, reason, seconds, how far it is, last and best evaluation (at its end), overrides."""
        found = []
        for i, (name, overrides) in enumerate(zip(self.names, self.jobs, strict=True)):
            folder = self.folder / str(i)
            record = read(folder)
            status = record.get("status", "waiting") if record.get("overrides") == overrides else "waiting"
            if status == "running" and not running(folder):
                status = "interrupted"
            elif status == "waiting" and running(folder):
                status = "running"
            reason = record.get("reason") if status in ("failed", "interrupted") else None
            if status == "interrupted":
                reason = f"{reason or 'its process was ended'}; the same command continues it"
            row = {"job": i, "status": status, "reason": reason}
            seconds = record.get("seconds")
            if status == "running":
                seconds = time.time() - record.get("began", time.time())
            row |= {"seconds": seconds, "best": record.get("value"), **progress(folder), "what": name}
            row |= {"mistake": record.get("mistake", False), "folder": str(folder)}
            found.append(row)
        return found

    def table(self, rows: list[dict]) -> Table:
        """The table of `rows` for a terminal."""
        counts = {status: sum(row["status"] == status for row in rows) for status in STYLES}
        title = ", ".join(f"{n} {status}" for status, n in counts.items() if n)
        columns = ("job", "what", "status", "seconds", "so far", "last", "best", "reason")
        table = terminal.table(*columns, title=title)
        for row in rows:
            style = STYLES[row["status"]]
            table.add_row(
                str(row["job"]),
                row["what"],
                f"[{style}]{row['status']}[/]",
                "" if row["seconds"] is None else f"{row['seconds']:.0f}",
                row["so_far"] or "",
                *("" if row[key] is None else f"{row[key]:.4g}" for key in ("last", "best")),
                (row["reason"] or "")[:200],
            )
        return table

    def save(self, rows: list[dict]) -> None:
        """Write `jobs.csv`, whole or not at all."""
        text = io.StringIO()
        writer = csv.DictWriter(text, ["job", "status", "what", "seconds", "last", "best", "reason", "folder"])
        writer.writeheader()
        writer.writerows({key: row[key] for key in writer.fieldnames} for row in rows)
        temporary = self.folder / f".jobs.{os.getpid()}.tmp"
        temporary.write_text(text.getvalue())
        os.replace(temporary, self.folder / "jobs.csv")

    def give_up(self, since: float) -> int:
        """Put jobs down as failed that began after `since` and whose processes were killed; returns how many."""
        lost = [Path(row["folder"]) for row in self.rows() if row["status"] == "interrupted"]
        lost = [folder for folder in lost if read(folder)["status"] == "running" and read(folder)["began"] >= since]
        for folder in lost:
            reason = "its process was killed (perhaps for want of memory)"
            end = {"status": "failed", "reason": reason, "mistake": False, "value": None}
            write_json(folder / "job.json", {**read(folder), **end})
        return len(lost)

    def check(self) -> None:
        """Where jobs failed or were interrupted, exit 1 with one line; raise UserError if all failed by mistakes."""
        rows = self.rows()
        failed = [row for row in rows if row["status"] == "failed"]
        if failed:
            text = f"{len(failed)} of {len(rows)} jobs failed, the first with: {failed[0]['reason']}"
            if all(row["mistake"] for row in failed):
                raise UserError(text)
            print(f"error: {text}; see {Path(failed[0]['folder']) / 'output.log'}", file=sys.stderr)
            raise SystemExit(1)
        interrupted = sum(row["status"] == "interrupted" for row in rows)
        if interrupted:
            print(f"{interrupted} of {len(rows)} jobs were interrupted; the same command continues", file=sys.stderr)
            raise SystemExit(1)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Show the table while the block runs (lines of what changes where the output is no terminal), and after."""
        console, ended = terminal.console(sys.stdout), threading.Event()
        live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        seen: dict[int, str] = {}

        def look() -> None:
            rows = self.rows()
            changed = [row for row in rows if seen.get(row["job"], "waiting") != row["status"]]
            seen.update({row["job"]: row["status"] for row in rows})
            if changed:
                self.save(rows)
            if live:
                live.update(self.table(rows), refresh=True)
            for row in [] if live else changed:
                left = sum(status != "done" for status in seen.values())
                why = f" ({row['reason']})" if row["reason"] else ""
                console.print(f"job {row['job']} {row['status']}{why}: {row['what']}; {left} to go", soft_wrap=True)

        def keep_looking() -> None:
            while not ended.wait(LOOK_EVERY):
                look()

        thread = threading.Thread(target=keep_looking, daemon=True)
        if live:
            live.start()
        look()
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            look()
            if live:
                live.stop()
            rows = self.rows()
            if not any((self.folder / str(i)).exists() for i in range(len(rows))):  # nothing began: leave no litter
                shutil.rmtree(self.folder)
            else:
                self.save(rows)
                if not live:
                    console.print(self.table(rows))
                console.print(f"jobs and their table are in {self.folder}", soft_wrap=True)


def progress(folder: Path) -> dict[str, Any]:
    """How far a job has come, from the last rows of its `metrics.csv`: "so_far" as text, the "last" score."""
    path = folder / "metrics.csv"
    return _last_rows(path, path.stat().st_mtime_ns) if path.exists() else {"so_far": None, "last": None}


@lru_cache(maxsize=1024)
def _last_rows(path: Path, changed: int) -> dict[str, Any]:
    """`progress` of a file as it was when it was last `changed`."""
    text = path.read_text()
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))  # the last line may be half written
    last = rows[-1] if rows else {}
    unit = next((unit for unit in ("frames", "epochs", "batches") if last.get(unit)), None)
    scores = [row["eval/episode_return"] for row in rows if row.get("eval/episode_return")]
    so_far = f"{float(last[unit]):,.0f} {unit}" if unit else None
    return {"so_far": so_far, "last": float(scores[-1]) if scores else None}
