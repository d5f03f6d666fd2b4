"""TorchScript files: a policy for C++ programs that link libtorch."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


def save(module: nn.Module, examples: tuple[Tensor, ...], path: Path, extra: dict[str, str]) -> None:
    """Trace a module of any batch size on `examples`, and write it. extra: texts that travel in the file, by name.

    torch 2.13 calls TorchScript deprecated, and still writes and reads it in Python and C++.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the deprecation, and of loops whose length is fixed
        torch.jit.trace(module, examples).save(str(path), _extra_files=extra)
