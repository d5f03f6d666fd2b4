"""Shares of an environment's copies, each stepped here or in a process of its own, with the same results."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from envs.adapters.copies.env_copies import Copy, Share
from envs.base import EnvError
from envs.infos import InfoRules
from marl.core.errors import UserError

PATIENCE = 5.0  # seconds that a process has to close its copies


class Worker:
    """A share in a process of its own. It ends when it is closed, with this object, or with its parent."""

    def __init__(self, make: Callable[[], Copy], count: int, name: str, number: str) -> None:
        # Forked, it would inherit threads' locks and the other workers' pipes, and so outlive a killed parent.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, count, name), daemon=True)
        self.process.start()
        theirs.close()
        self.name, self.number = name, number

    def ask(self, method: str, *args: Any) -> None:
        """Have the share's method called; `answer` waits for what it returns."""
        try:
            self.pipe.send((method, args))
        except OSError:  # it died; `answer` says so
            pass

    def answer(self) -> Any:
        """What the method returned, or, not raised so that all answers are fetched, the exception."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(PATIENCE)
            return EnvError(
                f"{self.name}: worker process {self.number} of env.workers died (exit code "
                f"{self.process.exitcode}); env.workers=0 steps its copies in this process."
            )
        if kind == "made":
            return value
        where = f"{self.name}: worker process {self.number} of env.workers failed:\n{value}"
        return EnvError(value) if kind == "refused" else RuntimeError(where)

    def close(self) -> None:
        """End the process, by force if it does not in time."""
        self.pipe.close()  # its end of the pipe tells it
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def serve(pipe: Connection, make: Callable[[], Copy], count: int, name: str) -> None:
    """Make a share, tell its layout, and answer until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    share = None

    def tried(work: Callable[[], Any]) -> None:
        try:
            pipe.send(("made", work()))
        except UserError as error:
            pipe.send(("refused", str(error)))
        except Exception:
            pipe.send(("failed", traceback.format_exc()))

    def begin() -> Any:
        nonlocal share
        share = Share(make, count, name)
        return share.layout()

    try:
        tried(begin)
        while True:
            method, args = pipe.recv()
            tried(lambda method=method, args=args: getattr(share, method)(*args))
    except (EOFError, OSError):
        if share is not None:
            share.close()


class Crew:
    """num_envs copies in `workers` processes at most, neighbours together; 0: all of them here.

    Raises EnvError for what the copies refuse, and for a process that died.
    """

    def __init__(self, make: Callable[[], Copy], num_envs: int, name: str, workers: int) -> None:
        self.shares: list[Share | Worker]
        self.parts = [
            slice(part[0], part[-1] + 1) for part in np.array_split(np.arange(num_envs), min(max(workers, 1), num_envs))
        ]
        if workers == 0:
            self.shares = [Share(make, num_envs, name)]
            self.layout = self.shares[0].layout()
            return
        self.shares = [
            Worker(make, part.stop - part.start, name, f"{k + 1} (copies {part.start} to {part.stop - 1})")
            for k, part in enumerate(self.parts)
        ]
        try:
            self.layout = self._answers()[0]
        except Exception:
            self.close()
            raise

    def each(self, method: str, *rows: Any) -> list[Any]:
        """What each share's method returns, given its copies' part of the rows."""
        arguments = [[row[part] for row in rows] for part in self.parts]
        if isinstance(self.shares[0], Share):
            return [getattr(self.shares[0], method)(*arguments[0])]
        for worker, share_arguments in zip(self.shares, arguments, strict=True):
            worker.ask(method, *share_arguments)
        return self._answers()

    def keep_infos(self, rules: InfoRules) -> None:
        """Have all shares tell only of figures that the rules keep."""
        for share in self.shares:
            if isinstance(share, Worker):
                share.ask("keep_infos", rules)
            else:
                share.keep_infos(rules)
        if isinstance(self.shares[0], Worker):
            self._answers()

    @property
    def here(self) -> Share:
        """All copies, where they are stepped in this process (workers=0)."""
        if not isinstance(self.shares[0], Share):
            raise EnvError("env.workers: only copies in this process can be looked at; write env.workers=0.")
        return self.shares[0]

    def _answers(self) -> list[Any]:
        answers = [worker.answer() for worker in self.shares]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def close(self) -> None:
        """Close every copy and end the processes."""
        for share in self.shares:
            share.close()


def joined(parts: list[Any]) -> Any:
    """Tuples of arrays, tuples among them, one after the other along the copies."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return type(parts[0])(*(joined(list(field)) for field in zip(*parts, strict=True)))
