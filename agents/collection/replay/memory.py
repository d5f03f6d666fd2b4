"""Where a replay buffer's tensors lie: on a device, or in a file beside the run that is mapped into memory."""

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from marl.core import files
from marl.core.errors import UserError

ALIGNED = 64  # bytes: where each tensor of a file begins
CHUNK = 2**20  # bytes that are written at once


class DeviceMemory:
    """Memory of a device.

    Attributes:
        device: where the tensors lie.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)

    def zeros(self, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
        """Tensors of zeros, {name: (shape, dtype)}."""
        return {name: torch.zeros(shape, dtype=dtype, device=self.device) for name, (shape, dtype) in shapes.items()}


class MappedMemory:
    """Files that are mapped into memory: the system keeps of them what is used, and writes out what it needs room for.

    A file has no name and goes with its tensors, at the latest with the process, however that ends. All of its room is
    reserved when it is made: a page that finds no room later would end the process by a signal.

    Attributes:
        device: the CPU.

    Args:
        folder: gives the folder whose disk holds the files, when the first is made; it is made where it is missing.
    """

    device = torch.device("cpu")

    def __init__(self, folder: Callable[[], Path]) -> None:
        self.folder = folder
        self._begun = False

    def zeros(self, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
        """Tensors of zeros, {name: (shape, dtype)}, all in one file. Raises UserError where the disk refuses."""
        sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in shapes.items()}
        starts, size = {}, 0
        for name, needed in sizes.items():
            starts[name] = size
            size += -(-needed // ALIGNED) * ALIGNED
        if not size:
            return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
        content = torch.frombuffer(self._map(size), dtype=torch.uint8)
        return {
            name: content[starts[name] : starts[name] + sizes[name]].view(dtype).view(shape)
            for name, (shape, dtype) in shapes.items()
        }

    def _map(self, size: int) -> mmap.mmap:
        folder = self.folder()
        try:
            if not self._begun:  # later a folder that is gone was removed, which is not to be undone
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                _reserve(file, size)
                content = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot reserve {size / 1e6:.1f} MB for the replay buffer: {files.reason(error)}; "
                "algo.buffer_on=device keeps it in memory, a smaller algo.buffer_frames needs less"
            ) from error
        content.madvise(mmap.MADV_RANDOM)  # what lies beside a drawn step is not drawn: read no further than that
        self._begun = True
        return content


def _reserve(file: BinaryIO, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:  # macOS
        for start in range(0, size, CHUNK):
            file.write(bytes(min(CHUNK, size - start)))
        file.flush()
