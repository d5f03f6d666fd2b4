"""Parts of the check on a GPU, each item in a process of its own under a clock: a crash or a hang costs one row.

The process that forks them never touches the GPU, since a context does not outlive a fork; each child makes its own.
A fault of one kernel (an address out of bounds) ends every context that saw it, and so just the one of its item.
"""

import argparse
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import torch

from bench.timing import Clock

GRACE = 5.0  # seconds after its share within which an item that has begun may still end
MOST = 12  # items side by side, each with a context and a compiler of its own
PASSED, FAILED, NONE, LEFT = "passed", "failed", "none", "left out"  # outcomes; "none" says that there is nothing

Rows = Callable[[str, argparse.Namespace, Clock], Iterator[dict]]


@dataclass(frozen=True)
class Part:
    """A part of the check.

    seconds: its share of a whole run. items: what it consists of. rows: the rows of one item, as they come.
    checks: whether it checks; the others measure. side_by_side: whether items may run at once, since none is timed.
    """

    name: str
    seconds: float
    items: Callable[[argparse.Namespace], list[str]]
    rows: Rows
    checks: bool = False
    side_by_side: bool = False


def verdict(key: str, name: str, passed: bool | None, said: str, **more: object) -> dict:
    """A row of the results that is no figure but an answer; None: there was nothing to check, `said` tells why."""
    outcome = NONE if passed is None else PASSED if passed else FAILED
    return {"key": key, "name": name, "outcome": outcome, "said": " ".join(said.split())} | more


def sentence(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


def _child(answer: Connection, part: Part, item: str, options: argparse.Namespace, seconds: float) -> None:
    """Works on one item; sends its rows, and None behind the last one."""
    faulthandler.enable(sys.__stderr__)
    if ":" in options.device:
        torch.cuda.set_device(options.device)  # events are recorded on the current one
    if part.side_by_side:
        torch.set_num_threads(1)
    try:
        for row in part.rows(item, options, Clock(seconds)):
            answer.send(row)
    except torch.OutOfMemoryError as error:  # a card may be too small for the largest sizes
        row = {"key": f"{part.name}/{item}", "name": item, "outcome": LEFT, "said": sentence(error), "left": [item]}
        answer.send(row)
    except Exception as error:
        traceback.print_exc()
        answer.send(verdict(f"{part.name}/{item}", item, False, sentence(error)))
    answer.send(None)
    answer.close()


def ended(code: int | None) -> str:
    """Why a process ended that did not say so itself."""
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


class Workers:
    """Processes at work on the items of a part."""

    def __init__(self, part: Part, options: argparse.Namespace, seconds: float) -> None:
        self.part, self.options, self.clock = part, options, Clock(seconds)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.most = max(1, min(MOST, cores)) if part.side_by_side else 1
        self.waiting = list(part.items(options))
        self.running: dict[Connection, tuple[str, multiprocessing.Process]] = {}

    def begin(self) -> None:
        """Starts items as long as there is room and time."""
        fork = multiprocessing.get_context("fork")
        while self.waiting and len(self.running) < self.most and not self.clock.over():
            item = self.waiting.pop(0)
            ours, theirs = fork.Pipe(duplex=False)
            left = (self.clock.seconds - self.clock.spent) / (1 if self.most > 1 else len(self.waiting) + 1)
            process = fork.Process(target=_child, args=(theirs, self.part, item, self.options, left), daemon=False)
            sys.stdout.flush()
            sys.stderr.flush()
            process.start()
            theirs.close()
            self.running[ours] = item, process

    def answers(self) -> Iterator[dict]:
        """Rows that have come by now; waits for one, but not beyond the share."""
        patience = max(0.0, self.clock.seconds + GRACE - self.clock.spent)
        for connection in wait(list(self.running), timeout=patience):
            item, process = self.running[connection]
            row: dict | None = None
            try:
                row = connection.recv()
                whole = row is None
            except (EOFError, OSError):  # it ended, perhaps in the middle of a row
                process.join()
                row, whole = verdict(f"{self.part.name}/{item}", item, False, ended(process.exitcode)), True
            if whole:
                self._close(connection)
            if row is not None:
                yield {"item": item, **row}

    def _close(self, connection: Connection) -> None:
        _, process = self.running.pop(connection)
        connection.close()
        process.join(GRACE)  # what it still does at its end
        if process.is_alive():
            process.kill()
            process.join()

    def late(self) -> bool:
        """Whether the share is over, and what was allowed beyond it."""
        return self.clock.spent >= self.clock.seconds + GRACE

    def stop(self) -> list[str]:
        """Ends what runs; the items that were not finished or not begun."""
        left = [item for item, _ in self.running.values()]
        for connection, (_, process) in list(self.running.items()):
            process.kill()
            self._close(connection)
        left, self.waiting = left + self.waiting, []
        return left


def run(part: Part, options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """The rows of a part within its share of seconds; the last one says which items were left for want of time."""
    began, workers = time.perf_counter(), Workers(part, options, seconds)
    try:
        workers.begin()
        while workers.running:
            yield from workers.answers()
            if workers.late():
                break
            workers.begin()
    finally:
        left = workers.stop()
    if left:
        took = time.perf_counter() - began
        said = f"no time in its share of {seconds:.0f} s (took {took:.0f}): {', '.join(left)}"
        yield {"item": "", "key": f"{part.name}/left", "name": part.name, "outcome": LEFT, "said": said, "left": left}
