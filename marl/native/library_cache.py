"""Where compiled libraries are kept: a folder that is the user's alone, its files named after their content.

A file's name holds the digest of what it was built from and of its own bytes. Whatever was cut short, damaged or
exchanged has another digest, is removed and built again. A library is code: it is never loaded from a folder that
another user owns or can write to.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

BUILDING = "build-"  # prefix of scratch folders
ABANDONED = 24 * 3600.0  # seconds after which no process uses a scratch folder any more
POLL = 0.05  # seconds between two looks at a lock


def cache_folder() -> Path:
    """Where kernels are kept: $MARL_KERNEL_CACHE, else ~/.cache/marl_kernels; a temporary folder if that can't be used.

    Warns once, with the reason, where kernels cannot be kept. Raises OSError where not even that can be made.
    """
    return _usable(os.environ.get("MARL_KERNEL_CACHE") or "")


@functools.lru_cache(maxsize=64)
def _usable(setting: str) -> Path:
    try:
        folder = Path(setting) if setting else Path.home() / ".cache" / "marl_kernels"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        reason = distrust(folder) or _write_error(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        folder, reason = Path(setting or "~/.cache/marl_kernels"), getattr(error, "strerror", None) or str(error)
    if not reason:
        _sweep(folder)
        return folder
    temporary = Path(tempfile.mkdtemp(prefix="marl_kernels_"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    warnings.warn(
        f"kernels are not kept in {folder}: {reason}; they are built again in {temporary} for this run. "
        "MARL_KERNEL_CACHE names another folder.",
        stacklevel=3,
    )
    return temporary


def distrust(folder: Path) -> str:
    """Why libraries in a folder may be another user's code, or "": its owner, its mode, and those of what it lies in.

    Folders above may be root's, and may be open to all where only owners can rename (as /tmp is).
    """
    if not hasattr(os, "geteuid"):
        return ""
    about = folder.stat()
    if about.st_uid != os.geteuid():
        return "another user owns it"
    if about.st_mode & 0o022:
        return f"other users can write to it (mode {stat.S_IMODE(about.st_mode):o}; chmod 700 {folder} closes it)"
    for parent in folder.parents:
        about = parent.stat()
        if about.st_uid not in (0, os.geteuid()):
            return f"another user owns {parent}"
        if about.st_mode & 0o002 and not about.st_mode & stat.S_ISVTX:
            return f"other users can write to {parent}"
    return ""


def _write_error(folder: Path) -> str:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=BUILDING) as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _sweep(folder: Path) -> None:
    """Removes scratch that killed processes left behind."""
    for left in folder.glob(f"{BUILDING}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def content_digest(content: bytes) -> str:
    """The part of a file's name that its content decides."""
    return hashlib.sha256(content).hexdigest()[:24]


def keep(content: bytes, key: str, suffix: str) -> Path:
    """Writes a file of the cache: flushed to the disk, then renamed to `<key>.<digest><suffix>`. Raises OSError."""
    folder = cache_folder()
    target = folder / f"{key}.{content_digest(content)}{suffix}"
    number, scratch = tempfile.mkstemp(dir=folder, prefix=BUILDING)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o600)
        os.replace(scratch, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
        raise
    return target


def find(key: str, suffix: str) -> Path | None:
    """The file that `keep` wrote under a key, its content as it was written; one with another content is removed."""
    for path in sorted(cache_folder().glob(f"{key}.*{suffix}")):
        if intact(path):
            return path
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return None


def intact(path: Path) -> bool:
    """Whether a file of the cache holds what its name says, and is the user's own."""
    try:
        about = path.stat()
        if hasattr(os, "geteuid") and (about.st_uid != os.geteuid() or about.st_mode & 0o022):
            return False
        return stat.S_ISREG(about.st_mode) and content_digest(path.read_bytes()) == path.name.split(".")[-2]
    except (OSError, IndexError):
        return False


@contextlib.contextmanager
def building(key: str, suffix: str, patience: float) -> Iterator[None]:
    """Within it no other process builds that file; after `patience` seconds of waiting it goes on all the same.

    Files whose keys begin with other two characters are built meanwhile: a step and its gradients, or two targets.
    There are 256 locks per suffix and not one per key, since their empty files stay in the folder.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(cache_folder() / f".lock-{key[:2]}{suffix}", "a") as file:
        until = time.monotonic() + patience
        while time.monotonic() < until:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(POLL)
        yield
