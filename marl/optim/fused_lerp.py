"""Weights that follow others slowly, all tensors of a network in one compiled call (`fused_lerp.cpp`).

Torch's own goes from tensor to tensor on one core; over small networks it takes as long as a network's pass.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from marl.native import library, threads
from marl.native.compiler import FLAGS
from marl.native.library import NUMBER, POINTER, REAL


class Lerp:
    """Moves tensors a share of the way to others, in place; both stay where they are found at the first call.

    Args:
        targets, sources: float32, of the same shapes in pairs.
    """

    def __init__(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        self.targets, self.sources = list(targets), list(sources)
        both = [tensor.detach() for tensor in (*self.targets, *self.sources)]
        self.plain = library.is_cpu_float32(*both) and all(tensor.is_contiguous() for tensor in both)
        self.sizes = (NUMBER * len(self.targets))(*[tensor.numel() for tensor in self.targets])
        self.at: tuple[int, ...] = ()

    def __reduce__(self) -> tuple:
        """A copy finds the places of its own tensors."""
        return Lerp, (self.targets, self.sources)

    @torch.no_grad()
    def __call__(self, share: float) -> None:
        """targets += share (sources - targets)."""
        lib = functions() if self.plain and library.dispatch_is_plain() else None
        if lib is None:
            torch._foreach_lerp_(self.targets, self.sources, share)
        else:
            self.by(lib, share)

    def by(self, lib: ctypes.CDLL, share: float) -> None:
        """As a call, with this library."""
        at, count = tuple(tensor.data_ptr() for tensor in (*self.targets, *self.sources)), len(self.targets)
        if at != self.at:
            pointers = POINTER * count
            self.at, self.places = at, (pointers(*at[:count]), pointers(*at[count:]))
        lib.lerp(threads.members(), count, self.sizes, share, *self.places)


def _check(lib: ctypes.CDLL) -> None:
    """Hold it to torch's. Raises RuntimeError."""
    generator = torch.Generator().manual_seed(0)
    for share in (0.005, 0.7):
        ours, sources = ([torch.randn(n, generator=generator) for n in (3, 40)] for _ in range(2))
        theirs = [tensor.clone() for tensor in ours]
        Lerp(ours, sources).by(lib, share)
        torch._foreach_lerp_(theirs, sources, share)
        if not all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(ours, theirs, strict=True)):
            raise RuntimeError("it differs from torch")


functions = library.Library(
    [Path(__file__).parent / name for name in ("../native/work_sharing.h", "fused_lerp.cpp")],
    FLAGS,
    {
        "width": ([], NUMBER),
        "use_pool": ([POINTER], None),
        "lerp": ([NUMBER] * 2 + [POINTER, REAL] + [POINTER] * 2, None),
    },
    _check,
    "target networks follow by torch's operations, not by a compiled function",
)
