"""Locks on folders: one process at a job or a run; the system frees them when a process dies, however it dies."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

from marl.core.errors import UserError

JOB, RUN = "job.lock", ".run.lock"
ATTEMPTS = 20  # to open a lock file beside others that make and remove its folder


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Hold a job's lock, or yield False where another process holds it."""
    with open(folder / JOB, "w") as file:
        for attempt in range(10):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # another process is at work, or just looking
                time.sleep(0.02 * attempt)
        else:
            yield False
            return
        yield True


@contextmanager
def briefly(folder: Path) -> Iterator[None]:
    """Keep others who call this out of `folder` for a moment."""
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that locks no folders
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


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
def exclusive_run_lock(run_dir: Path, needed: bool = True) -> Iterator[None]:
    """Train in a run's directory as the only process that does (`needed`: else nothing is locked).

    Raises:
        UserError: another process is training there, or the file system has no locks.
    """
    if not needed:
        yield
        return
    file = _held(run_dir / RUN)
    try:
        file.truncate(0)
        file.write(owner() + "\n")
        file.flush()
        yield
    finally:
        file.close()


def _held(path: Path) -> IO[str]:
    """The lock file, open and locked: the one that lies at `path` now, not one that a failed start has removed."""
    for _ in range(ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "a+")  # noqa: SIM115 - open as long as it is held
        except FileNotFoundError:  # the folder was removed in between
            continue
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: workers that were forked would hold it too
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise UserError(
                f"{path.parent}: another process is training in this directory; wait for it, or take another one "
                "(hydra.run.dir=PATH)"
            ) from error
        except FileNotFoundError:
            pass
        except OSError as error:
            file.close()
            raise UserError(f"{path}: cannot be locked: {error.strerror}") from error
        file.close()
    raise UserError(f"{path}: other processes keep removing this folder")


def owner() -> str:
    """Who holds a run's lock: torchrun's processes share a name that outlives a restart, others have their number."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return f"process {os.getpid()}"
    start_time = psutil.Process(os.getppid()).create_time()
    return f"torchrun {os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {os.getppid()} {start_time}"
