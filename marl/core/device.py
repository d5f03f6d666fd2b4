"""Which device a run uses, by name, and how the CPU's memory is kept."""

import ctypes
import re

import torch

from marl.core.errors import UserError


def pick(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU, else the CPU. Raises UserError where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"device={name}: must be auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= gpus:
        has = f"only {gpus} GPU(s)" if gpus else "no GPU that torch can use"
        raise UserError(f"device={name}: this machine has {has}; auto and cpu are allowed")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device={name}: this machine has no such device; auto and cpu are allowed")
    return device


def keep_freed_memory() -> bool:
    """Make the C library keep large blocks that were freed, for the whole process; False where it can't be asked.

    glibc hands big blocks back to the system at once and gets them again as pages of zeros, one page fault per 4 kB:
    the activations of one minibatch of 4,096 frames x 4 agents cost 6,400 faults with two threads. Kept, the heap
    settles after a few rounds and faults no more; memory is given back when the process ends. Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # macOS, musl
        return False
    trim_threshold, mmap_max = -1, -4
    return bool(mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_max, 0))
