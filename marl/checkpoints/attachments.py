"""Files beside a run's checkpoints that these refer to: what grows is written once, not again with every checkpoint."""

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from marl.checkpoints import checkpoint_file
from marl.core import distributed, files
from marl.core.errors import Unusable, UserError

NAME = r"\d{8}-\d+-[0-9a-f]{16}\.safetensors"  # number, process, beginning of the digest
OURS = re.compile(rf"{NAME}|\.{NAME}\.\d+\.tmp")
PLACES = (".", "checkpoints", "checkpoints/abandoned")  # of a run's checkpoints


class Attachments:
    """Files of tensors in a folder of a run, kept as long as a checkpoint of the run refers to them.

    A task that has some is its own writer and reader. Its state names those it needs under "files", {path relative to
    the run's directory: SHA-256 of the file}. The engine says where the run is, and when files may go.

    Args:
        folder: name of the folder in the run's directory.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.run_dir: Path | None = None
        self._known: dict[tuple[int, int, int], frozenset[str]] = {}  # what the checkpoints on the disk refer to

    def open(self, run_dir: str | Path) -> None:
        """From now on the run's directory is this one; nothing is made there yet."""
        self.run_dir = Path(run_dir)

    def path(self, name: str) -> Path:
        """Where a file of the run lies. Raises UserError before `open`."""
        if self.run_dir is None:
            raise UserError(f"{name}: a task that keeps files needs a run's directory (Trainer.fit, Attachments.open)")
        return self.run_dir / name

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> tuple[str, str]:
        """Write a file, whole or not at all, and flush it to the disk.

        Args:
            number: of the file, as the task counts them.
            tensors: what it holds.

        Returns:
            Its path relative to the run's directory, and its SHA-256.

        Raises:
            UserError: the disk refuses.
        """
        content = safetensors.torch.save({name: value.cpu().contiguous() for name, value in tensors.items()})
        digest = hashlib.sha256(content).hexdigest()
        name = f"{self.folder}/{number:08d}-{distributed.rank()}-{digest[:16]}.safetensors"
        files.write(self.path(name), content)
        return name, digest

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return self.path(name).is_file()

    def read(self, name: str, digest: str) -> dict[str, Tensor]:
        """What a file holds, on the CPU. Raises UserError naming it where it is missing or another than was written."""
        path = self.path(name)
        try:
            return safetensors.torch.load(_verified(path, digest))
        except safetensors.SafetensorError as error:
            raise UserError(f"{path}: cannot be read: {files.reason(error)}") from error

    # ---- which may go ------------------------------------------------------------------------------------------

    def note(self, path: Path, content: Mapping[str, Any]) -> None:
        """A checkpoint was just written: what it refers to need not be read from there."""
        self._known[_identity(path)] = frozenset(referred(content))

    def sweep(self) -> None:
        """Remove the files that no checkpoint of the run refers to, and temporary ones that killed processes left.

        Where a checkpoint is out of reach at the moment nothing is removed, since it may refer to any of them.
        """
        folder = self.path(self.folder)
        there = [path for path in folder.iterdir() if OURS.fullmatch(path.name)] if folder.is_dir() else []
        try:
            needed = self._needed() if there else frozenset()
        except Unusable:
            return
        for path in there:
            if f"{self.folder}/{path.name}" not in needed:
                with suppress(OSError):  # it takes room, no more; the next sweep tries again
                    path.unlink()

    def _needed(self) -> frozenset[str]:
        known = {}
        for path in (path for place in PLACES for path in self.path(place).glob("*.pt")):
            identity = _identity(path)  # the same after it was renamed to make room for a newer one
            if identity not in self._known:
                try:
                    self._known[identity] = frozenset(referred(checkpoint_file.load(path)))
                except Unusable:
                    raise
                except UserError:  # damaged, or no checkpoint: nothing can go on from it
                    self._known[identity] = frozenset()
            known[identity] = self._known[identity]
        self._known = known
        return frozenset().union(*known.values())


def _identity(path: Path) -> tuple[int, int, int]:
    about = path.stat()
    return about.st_ino, about.st_mtime_ns, about.st_size


def referred(content: Mapping[str, Any]) -> dict[str, str]:
    """{path: SHA-256} of the files that a checkpoint refers to, of all its processes."""
    states = [process["task"].get("files", {}) for process in content.get("processes", ())]
    return {name: digest for state in states for name, digest in state.items()}


def check(content: Mapping[str, Any], run_dir: Path) -> None:
    """Read all that a checkpoint refers to. Raises UserError naming the first file that is missing or damaged.

    A checkpoint of another number of processes needs none of its files (`marl.task.Task.rejoin`).
    """
    if len(content["processes"]) == distributed.world():
        for name, digest in referred(content).items():
            _verified(run_dir / name, digest)


def _verified(path: Path, digest: str) -> bytes:
    way = "the checkpoint needs it; resume=FILE goes on from an earlier one, init_from=… begins with its weights"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; {way}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {files.reason(error)}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path}: is damaged, or another run's (its digest does not match); {way}")
    return content
