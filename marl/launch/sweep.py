"""A sweep's folder: which jobs it has, how each stands (done, running, failed and why), and the table of them.

Everything is read from files, so it is the same for jobs in this process, in others and on other machines:
`sweep.json` (the jobs' overrides) and `jobs.csv` (the table) in the folder; per job `0/`, `1/`, … with `job.json`,
`output.log` (what it printed) and `job.lock`, which a running job holds locked, so that a killed one is told from it.
"""

import csv
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.table import Table

from marl.core import terminal
from marl.core.errors import Stopped, UserError
from marl.core.files import set_aside, write, write_json
from marl.core.lock import JOB, briefly, lock, running
from marl.core.run_directory import make, make_new, refuse_foreign, remove_empty
from marl.launch.sweep_jobs import canonical, progress, read, recorded, recorded_command

STYLES = {"done": "green", "running": "yellow", "failed": "red", "interrupted": "magenta", "waiting": "dim"}
START = "MARL_SWEEP_START"  # environment variable: which start of the sweep a process belongs to
OWN = ("sweep.json", "jobs.csv", "multirun.yaml")  # of a sweep's folder, the last one Hydra's
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
        refuse_foreign(folder)
        known = read(folder, aside=True)
        start = os.environ.get(START)
        ended = unchanged and known.get("status") == "done"
        failed_just_now = start is not None and known.get("status") == "failed" and known.get("start") == start
        if (ended or failed_just_now) and known.get("overrides") == list(overrides):
            return known.get("value")
        start_time, record = time.time(), {"overrides": list(overrides), "began": time.time(), "start": start}
        write_json(folder / "job.json", {**record, "status": "running"})
        with open(folder / "output.log", "a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
            try:
                value = call()
                end = {"status": "done", "reason": None, "value": value}
            except Stopped as stopped:  # no failure: the process that ended it wants the next job not to begin
                end = {"status": "interrupted", "reason": stopped.where, "value": None}
                write_json(folder / "job.json", {**record, **end, "seconds": time.time() - start_time})
                raise
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                mistake = isinstance(error, mistakes)
                if not mistake:
                    traceback.print_exc()
                    reason = f"{type(error).__name__}: {reason}"
                print(f"error: {reason}", file=sys.stderr)
                value, end = None, {"status": "failed", "reason": reason, "mistake": mistake, "value": None}
        write_json(folder / "job.json", {**record, **end, "seconds": time.time() - start_time})
        return value


# ---- the whole -------------------------------------------------------------------------------------------------


class Sweep:
    """The jobs of one sweep, in `folder`.

    Args:
        jobs: the overrides of every job, in order; job i lives in `folder/i`.
        command: the overrides of the whole sweep, sorted: what makes it the same sweep.
    """

    def __init__(self, folder: Path, jobs: Sequence[Sequence[str]], command: Sequence[str]):
        self.folder, self.jobs, self.command = Path(folder), [list(job) for job in jobs], sorted(command)
        self.created_folders: list[Path] = []  # by this process, for the sweep
        self.earlier_files: set[str] = set()  # that were in the folder before
        self.name()

    def name(self) -> None:
        """What tells each job from the others, in a few words."""
        common = set.intersection(*map(set, self.jobs))
        self.names = [", ".join(o for o in job if o not in common) or "all" for job in self.jobs]

    @classmethod
    def open(cls, default: Path, jobs: Sequence[Sequence[str]], command: Sequence[str]) -> "Sweep":
        """The sweep of the same jobs that was begun before, in a folder beside `default`; else a new one.

        A new one's folder is `default`, or `default_2` … where that is taken.
        """
        known, mine = [], sorted(map(canonical, jobs))
        for path in Path(default).parent.glob("*/sweep.json"):
            try:
                recorded_jobs = recorded(path.parent)
            except UserError as error:
                print(f"warning: {error}; passed over, hydra.sweep.dir={path.parent} continues it", file=sys.stderr)
                continue
            if sorted(map(canonical, recorded_jobs or [])) == mine:
                known.append(path)
        newest = max(known, key=lambda path: path.stat().st_mtime, default=None)
        if newest:
            return cls(newest.parent, jobs, command)
        folders = make_new(default)
        opened = cls(folders[-1], jobs, command)
        opened.created_folders = folders
        return opened

    def begin(self) -> None:
        """Write what this sweep is, for the next start of the same one. Raises UserError for another one's folder."""
        self.created_folders = self.created_folders or make(self.folder)
        with briefly(self.folder):
            self.enter()

    def enter(self) -> None:
        """`begin` in a folder that no other process enters meanwhile."""
        file, self.earlier_files = self.folder / "sweep.json", {path.name for path in self.folder.iterdir()}
        try:
            known = recorded(self.folder)
        except UserError as error:
            if not any((self.folder / str(i) / JOB).exists() for i in range(len(self.jobs))):
                raise
            set_aside(file, str(error))
            known = None
        if known is None and self.foreign():
            raise UserError(f"hydra.sweep.dir={self.folder}: holds another sweep, or files of something else")
        if known is not None:
            if sorted(map(canonical, known)) != sorted(map(canonical, self.jobs)):
                command = " ".join(recorded_command(self.folder))
                raise UserError(f"hydra.sweep.dir={self.folder}: holds another sweep ({command})")
            self.jobs = known  # in the order they were begun in
            self.name()
        for i in range(len(self.jobs)):
            read(self.folder / str(i), aside=True)
        done = sum(row["status"] == "done" for row in self.rows())
        if known is not None or done:
            print(f"continuing {self.folder}: {done} of {len(self.jobs)} jobs are done", flush=True)
        write_json(file, {"command": self.command, "jobs": self.jobs})

    def foreign(self) -> bool:
        """Whether a folder without `sweep.json` has files that this sweep would replace, or jobs of another one."""
        for i, job in enumerate(self.jobs):
            refuse_foreign(self.folder / str(i))
            overrides = read(self.folder / str(i)).get("overrides")
            if overrides is not None and canonical(overrides) != canonical(job):
                return True
        return any((self.folder / name).exists() for name in OWN[1:]) and not (self.folder / "0").exists()

    def rows(self) -> list[dict]:
        """Per job: job, status, reason, seconds, how far it is, last and best evaluation (at its end), overrides."""
        rows_shown = []
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
            rows_shown.append(row)
        return rows_shown

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
        write(self.folder / "jobs.csv", text.getvalue().encode())

    def give_up(self, since: float) -> int:
        """Put jobs down as failed that began after `since` and whose processes were killed; returns how many."""
        lost = [Path(row["folder"]) for row in self.rows() if row["status"] == "interrupted"]
        lost = [folder for folder in lost if (record := read(folder)).get("status") == "running"
                and record.get("began", 0) >= since]  # fmt: skip
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

    def withdraw(self) -> None:
        """Remove what this process made for a sweep in which nothing began."""
        for name in OWN:
            if name not in self.earlier_files:
                (self.folder / name).unlink(missing_ok=True)
        remove_empty(self.created_folders)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Show the table while the block runs (lines of what changes where the output is no terminal), and after."""
        console, ended = terminal.console(sys.stdout), threading.Event()
        live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        shown: dict[int, str] = {}

        def look() -> None:
            rows = self.rows()
            changed = [row for row in rows if shown.get(row["job"], "waiting") != row["status"]]
            shown.update({row["job"]: row["status"] for row in rows})
            if changed:
                self.save(rows)
            if live:
                live.update(self.table(rows), refresh=True)
            for row in [] if live else changed:
                left = sum(status != "done" for status in shown.values())
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
                self.withdraw()
            else:
                self.save(rows)
                if not live:
                    console.print(self.table(rows))
                console.print(f"jobs and their table are in {self.folder}", soft_wrap=True)
