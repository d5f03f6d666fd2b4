"""Locks on folders: one process at a job or a run; the system frees them when a process dies, however it dies."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from marl.errors import UserError

JOB, RUN = "job.lock", ".run.lock"


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Hold a job's lock, or yield False where another process holds it."""
    with open(folder / JOB, "w") as file:
        for attempt in range(10):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # somebody at work, or just looking
                time.sleep(0.02 * attempt)
        else:
            yield False
            return
        yield True


def running(folder: Path) -> bool:
    """Whether some process is at this job."""
    try:
        with open(folder / JOB) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


@contextmanager
def alone(run_dir: Path, needed: bool = True) -> Iterator[None]:
    """Train in a run's directory as the only process that does (`needed`: else nothing is locked).

    Raises:
        UserError: another process is training there.
    """
    if not needed:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / RUN, "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: workers that were forked would hold it too
        except (BlockingIOError, PermissionError) as error:
            raise UserError(
                f"{run_dir}: another process is training in this directory; wait for it, or take another one "
                "(hydra.run.dir=PATH)"
            ) from error
        yield
