"""Files written whole or not at all, flushed to the disk, and read back with one sentence for a damaged one."""

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from marl.core.errors import Damaged, UserError


def write(path: str | Path, *content: bytes, keep: int = 1) -> None:
    """Write a file atomically: temporary file beside it, flush to disk, rename, flush the directory.

    The files before it stay as `NAME-1.EXT` (the previous one), `NAME-2.EXT` and so on, `keep` in all.

    Raises:
        UserError: the disk refuses; the earlier file is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if keep > 1 and path.is_file():
            _shift(path, keep)
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        what = "checkpoint" if path.suffix in (".pt", ".safetensors") else "file"
        raise UserError(f"cannot write {what} {path}: {reason(error)}; the earlier one is untouched") from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # a directory that cannot be written to has been reported above
            pass


def _shift(path: Path, keep: int) -> None:
    """Make room: `path` is kept as number 1, number 1 as 2, …; `path` itself stays in place all the while."""
    for number in range(keep - 1, 1, -1):
        newer = _numbered(path, number - 1)
        if newer.exists():
            os.replace(newer, _numbered(path, number))
    link = path.with_name(f".{path.name}.{os.getpid()}.link.tmp")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
        os.replace(link, _numbered(path, 1))
    except OSError:  # a file system without hard links: for a moment only the numbered files exist
        os.replace(path, _numbered(path, 1))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def reason(error: Exception) -> str:
    """First line of an error's message, or its kind where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), type(error).__name__)


# ---- JSON and YAML ---------------------------------------------------------------------------------------------


def finite(value):
    """`value` with NaN and infinities as None: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, content: dict) -> None:
    """Write JSON as `write` does; NaN and infinities become null. Raises UserError where the disk refuses."""
    write(path, (json.dumps(finite(content), indent=2) + "\n").encode())


def read_json(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        FileNotFoundError: there is none.
        Damaged: it cannot be read, or holds something other than a mapping.
    """
    return _mapping(path, json.loads, "JSON")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises as `read_json`."""
    return _mapping(path, yaml.safe_load, "YAML")


def _mapping(path: str | Path, parse: Any, kind: str) -> dict[str, Any]:
    try:
        raw = Path(path).read_bytes()
        if not raw.strip(b"\0 \t\r\n"):
            raise Damaged(f"{path}: is empty{' (NUL bytes alone)' if raw.strip() else ''}; {kind} was expected")
        content = parse(raw.decode())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, UserError):
            raise
        raise Damaged(f"{path}: cannot be read as {kind} ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict):
        raise Damaged(f"{path}: holds a {type(content).__name__}; a mapping of keys to values was expected")
    return content


def set_aside(path: Path, problem: str) -> None:
    """Keep a damaged file as NAME.damaged, so that nothing takes it for a good one; says so on stderr."""
    print(f"warning: {problem}; set aside as {path.name}.damaged", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):  # another process was faster, or the disk is read-only
        os.replace(path, path.with_name(f"{path.name}.damaged"))
