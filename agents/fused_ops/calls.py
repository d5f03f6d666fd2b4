"""How tensors reach the compiled functions of this folder: whether they may, and their places in memory."""

import ctypes

from torch import Tensor

from marl.native import library


def usable(functions: library.Library, *tensors: Tensor | None) -> bool:
    """Whether these are ordinary, contiguous float32 tensors on a CPU, and the functions are at hand."""
    return (
        library.dispatch_is_plain()
        and library.is_cpu_float32(*tensors)
        and all(t is None or t.is_contiguous() for t in tensors)
        and functions() is not None
    )


def run(lib: ctypes.CDLL, name: str, numbers: tuple[float, ...], *tensors: Tensor | None) -> None:
    """Call the function `name` with numbers, then tensors; a recording repeats it (`marl.native.library.run`)."""
    library.run(getattr(lib, name), (*numbers, *places(*tensors)), tensors)


def places(*tensors: Tensor | None) -> tuple[int | None, ...]:
    """Where the tensors' numbers lie."""
    return tuple(None if t is None else t.data_ptr() for t in tensors)
