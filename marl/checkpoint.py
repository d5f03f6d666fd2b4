"""Checkpoints: written atomically, loaded without running any code."""

import os
import pickle
from pathlib import Path

import torch

from marl.errors import UserError

FORMAT_VERSION = 1


def save(path: str | Path, state: dict) -> None:
    """Write `state` (tensors and plain Python) so that `path` holds either the old file or the new one, whole.

    Temporary file beside it, flush to disk, rename, flush the directory. Raises UserError with the path when the
    disk refuses; the earlier file is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save({"format_version": FORMAT_VERSION, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write checkpoint {path}: {reason(error)}; the earlier one is untouched") from error
    finally:
        temporary.unlink(missing_ok=True)


def reason(error: Exception) -> str:
    """First line of an error's message, or its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def load(path: str | Path, map_location: str | torch.device = "cpu") -> dict:
    """Read a checkpoint with `weights_only=True`. Raises UserError naming the file when it is missing or broken."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {reason(error)}") from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{path} is no checkpoint of this framework (no format_version)")
    if version > FORMAT_VERSION:
        raise UserError(f"checkpoint {path} has format {version}; this version reads up to {FORMAT_VERSION}")
    return state


def find(run: str | Path, which: str = "last") -> Path:
    """The checkpoint meant by `run`: a file itself, or `checkpoints/<which>.pt` of a run directory."""
    run = Path(run)
    path = run if run.is_file() else run / "checkpoints" / f"{which}.pt"
    if not path.is_file():
        raise UserError(f"no checkpoint at {run}: expected a file, or a run directory with {path}")
    return path
