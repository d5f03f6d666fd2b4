"""Worker processes end soon after the process that began them, however that one died."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOOK_EVERY = 1.0  # seconds between looks at the parent
PATIENCE = 60.0  # seconds that a job has to finish its update and write a checkpoint
EXIT_CODE = 128 + signal.SIGTERM

_watched: set[int] = set()
_jobs: list[object] = []


@contextmanager
def at_work(parent: int) -> Iterator[None]:
    """Do a job as a worker of the process `parent`: when that is gone, the job gets a SIGTERM and the worker ends.

    An idle worker ends too. Does nothing where `parent` is not this process's parent to begin with.
    """
    if os.getppid() == parent and parent not in _watched:
        _watched.add(parent)
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    elif parent in _watched and os.getppid() != parent:  # a job that was waiting in a pipe
        os._exit(EXIT_CODE)
    _jobs.append(parent)
    try:
        yield
    finally:
        _jobs.pop()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    if _jobs:
        os.kill(os.getpid(), signal.SIGTERM)  # a run finishes its update and writes a checkpoint (marl.core.signals)
    end = time.monotonic() + PATIENCE
    while _jobs and time.monotonic() < end:
        time.sleep(0.05)
    os._exit(EXIT_CODE)  # from within a thread; files are written whole, so nothing is cut short
