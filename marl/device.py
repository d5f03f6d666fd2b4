"""Which device a run uses, by name."""

import re

import torch

from marl.errors import UserError


def pick(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU, else the CPU. Raises UserError where there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"device={name}: must be auto, cpu, cuda, cuda:N or mps")
    found = torch.device(name)
    gpus = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= gpus:
        has = f"only {gpus} GPU(s)" if gpus else "no GPU that torch can use"
        raise UserError(f"device={name}: this machine has {has}; auto and cpu are allowed")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device={name}: this machine has no such device; auto and cpu are allowed")
    return found
