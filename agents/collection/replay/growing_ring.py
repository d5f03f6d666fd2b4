"""Rings that grow: what lies in slot number % size goes to where it lies in a larger one.

Shapes: M slots, L numbers that are kept.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from agents.collection.replay.memory import DeviceMemory, MappedMemory


def enlarged(
    rings: Mapping[str, Tensor], numbers: Tensor, size: int, memory: DeviceMemory | MappedMemory
) -> dict[str, Tensor]:
    """Rings of `size` slots that hold what these, [M, ...], hold under the numbers int64 [L]."""
    larger = memory.zeros({name: ((size, *ring.shape[1:]), ring.dtype) for name, ring in rings.items()})
    if len(numbers):
        for name, ring in rings.items():
            larger[name][numbers % size] = ring[numbers % len(ring)]
    return larger


def renumber(index: Tensor, numbers: Tensor, before: int, size: int) -> None:
    """Let an index of slots, int32 with -1 for none, in place, point into the ring of `size` slots instead of `before`.

    Slots that hold none of the numbers become -1.
    """
    moved = torch.full((before,), -1, dtype=index.dtype, device=index.device)
    moved[numbers % before] = (numbers % size).to(moved.dtype)
    at = (index >= 0).nonzero(as_tuple=True)
    index[at] = moved[index[at].long()]
