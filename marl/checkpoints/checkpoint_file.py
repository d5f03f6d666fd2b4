"""Checkpoints: written whole or not at all, with a digest, and loaded without running any code."""

import copy
import errno
import hashlib
import io
import json
import os
import pickle
import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from marl.core.errors import Unusable, UserError
from marl.core.files import reason, set_aside, write
from marl.core.moved import update_checkpoint
from marl.core.run_directory import candidates, iteration_of

FORMAT_VERSION = 2  # 1 had no digest and one process only
TAG = b"\nsha256:"  # the file ends with it, 64 hexadecimal digits and a line feed; torch.load passes over that
TRAILER = len(TAG) + 64 + 1
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)


def save(path: str | Path, state: Mapping, keep: int = 1) -> None:
    """Write `state` (tensors and plain Python) so that `path` holds either the old file or the new one, whole.

    The files before it stay as `NAME-1.pt` (the previous one), `NAME-2.pt` and so on, `keep` in all. Raises
    UserError with the path when the disk refuses, and as `plain`; the earlier files are then untouched.
    """
    path = Path(path)
    buffer = io.BytesIO()  # in memory first: torch's own writer ends the process where a disk is full
    state = {key: plain(value, key) for key, value in state.items()}
    torch.save({"format_version": FORMAT_VERSION, **state}, buffer)
    content = buffer.getvalue()  # no view: one in the traceback of a full disk crashes Python 3.12.1 at its end
    trailer = TAG + hashlib.sha256(content).hexdigest().encode() + b"\n"
    write(path, content, trailer, keep=keep)


def plain(value: Any, name: str) -> Any:
    """`value` with numpy's numbers as Python's. Raises UserError, by dotted `name`, for what `load` would refuse."""
    kind = type(value)
    if isinstance(value, np.generic):
        return value.item()
    if kind in (dict, OrderedDict, Counter):
        copied = copy.copy(value)
        for key in copied:
            copied[key] = plain(value[key], f"{name}.{key}")
        return copied
    if kind in (list, tuple, set):
        return kind(plain(item, f"{name}[{i}]") for i, item in enumerate(value))
    if isinstance(value, Tensor) or kind in PLAIN:
        return value
    raise UserError(
        f"checkpoint: {name} is a {kind.__module__}.{kind.__qualname__}; only tensors, numbers, strings and lists and "
        "dicts of these are kept, so that loading a checkpoint runs no code"
    )


def save_weights(path: str | Path, weights: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write `weights` alone in the safetensors format, as safely as `save` does; `about` becomes its metadata.

    Its metadata hold the digest of the whole file, taken with zeros in the digest's place.
    """
    flat = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    content = safetensors.torch.save(flat, metadata={**about, "sha256": "0" * 64})
    digest = hashlib.sha256(content).hexdigest().encode()
    write(Path(path), content.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest, 1))


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes left in `folder`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def load(path: str | Path, map_location: str | torch.device = "cpu") -> dict:
    """Read a checkpoint: its digest first, then with `weights_only=True`.

    Raises UserError naming the file when it is missing, damaged, foreign, of a newer format, or holds anything but
    tensors and plain Python.
    """
    content = _read(path)
    payload, trailer = memoryview(content)[:-TRAILER], content[-TRAILER:]
    if not trailer.startswith(TAG):
        raise UserError(f"checkpoint {path} cannot be read: it is truncated, or not of this framework (no digest)")
    if trailer[len(TAG) : -1] != hashlib.sha256(payload).hexdigest().encode() or trailer[-1:] != b"\n":
        raise UserError(f"checkpoint {path} cannot be read: it is damaged (its digest does not match)")
    try:
        state = torch.load(io.BytesIO(payload), map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        what = "it holds more than tensors and plain Python, and loading it could run code"
        raise UserError(f"checkpoint {path} cannot be read: {what}") from error
    except Exception as error:  # an unpickler fed with nonsense may raise anything
        raise UserError(f"checkpoint {path} cannot be read: {reason(error)}") from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{path} is no checkpoint of this framework (no format_version)")
    if version != FORMAT_VERSION:
        older = "an older" if version < FORMAT_VERSION else "a newer"
        raise Unusable(f"checkpoint {path} has format {version}, of {older} version; this one reads {FORMAT_VERSION}")
    return update_checkpoint(state)


def load_weights(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The weights of a checkpoint (its loss module's state) or of a `.safetensors` file. Raises UserError as `load`."""
    if Path(path).suffix != ".safetensors":
        state = load(path, map_location).get("loss")
        if not isinstance(state, dict):
            raise UserError(f"checkpoint {path} holds no weights")
        return state
    content = _read(path)
    digest = re.search(rb'"sha256":"([0-9a-f]{64})"', content)
    if digest is None and b'"policy":"' in content[: 8 + int.from_bytes(content[:8], "little")]:
        return _tensors(content, path, map_location)  # a policy file, of a version before they had digests
    if digest is None:
        raise UserError(f"weights {path} cannot be read: truncated, or not of this framework (no digest)")
    zeros = content[: digest.start(1)] + b"0" * 64 + content[digest.end(1) :]
    if hashlib.sha256(zeros).hexdigest().encode() != digest[1]:
        raise UserError(f"weights {path} cannot be read: the file is damaged (its digest does not match)")
    return _tensors(content, path, map_location)


def description(path: str | Path) -> dict[str, Any] | None:
    """What a policy file (`agents.policies.policy`) says of itself; None for every other file.

    Raises:
        UserError: it ends in .safetensors and cannot be read.
    """
    if Path(path).suffix != ".safetensors":
        return None
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get("policy", "null")
        content = json.loads(text)
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"weights {path} cannot be read: {reason(error)}") from error
    return content if isinstance(content, dict) else None


def _tensors(content: bytes, path: str | Path, map_location: str | torch.device) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"weights {path} cannot be read: {reason(error)}") from error
    return {name: value.to(map_location) for name, value in tensors.items()}


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"checkpoint {path} does not exist") from None
    except OSError as error:
        kind = UserError if error.errno == errno.EIO else Unusable  # a broken disk; else rights, open files, …
        raise kind(f"checkpoint {path} cannot be read: {reason(error)}") from error


def newest(run_dir: str | Path, map_location: str | torch.device = "cpu") -> tuple[Path, dict] | None:
    """The newest good checkpoint of a run and its content; None where there is none at all.

    Damaged ones on the way are named on stderr and set aside as NAME.damaged, so that no good one makes room for them.
    Raises UserError where all of them are damaged, and Unusable where one is of another format or out of reach.
    """
    paths, problems, best = candidates(run_dir), {}, None
    for path in paths:
        if best is not None and iteration_of(path) <= best[1]["iteration"]:
            continue
        try:
            best = path, load(path, map_location)
        except Unusable:
            raise
        except UserError as error:
            problems[path] = str(error)
    if best is None and paths:
        raise UserError("; ".join(problems.values()))
    for path, problem in problems.items():
        set_aside(path, problem)
    if problems and best:
        print(f"warning: continuing from {best[0]}, iteration {best[1]['iteration']}", file=sys.stderr, flush=True)
    return best


def branch(run_dir: str | Path, chosen: Path, iteration: int) -> list[Path]:
    """Make `chosen`, of `iteration`, a run's newest checkpoint; later ones go to checkpoints/abandoned. Those, moved.

    `last.pt` is the chosen one before anything is moved: a run resumed after a crash in between finds it.
    """
    folder = Path(run_dir) / "checkpoints"
    later = []
    for path in [*candidates(run_dir), folder / "best.pt"]:
        try:
            if path.is_file() and (iteration_of(path) or load(path)["iteration"]) > iteration:
                later.append(path)
        except Unusable:
            raise
        except UserError as error:  # it would be shifted along, and in the end fall off
            set_aside(path, str(error))
    last = folder / "last.pt"
    if last in later:
        (folder / "abandoned").mkdir(exist_ok=True)
        write(folder / "abandoned" / last.name, last.read_bytes())
        write(last, chosen.read_bytes())
    abandon(later, kept=last)
    return later


def abandon(paths: Sequence[Path], kept: Path | None = None) -> None:
    """Move checkpoints, with their weights, to the folder `abandoned` beside them; of `kept` the weights alone."""
    for path in paths:
        for one in (path, path.with_suffix(".safetensors")):
            if one != kept and one.exists():
                (path.parent / "abandoned").mkdir(exist_ok=True)
                os.replace(one, path.parent / "abandoned" / one.name)
