"""Which axis of a simulator's tensor counts environments: told by two simulators with different numbers of them."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_axis(shape: torch.Size, other: torch.Size, num_envs: int, other_envs: int) -> int | None:
    """The axis with num_envs in one shape and other_envs in the other, all else equal; None where both are the same.

    Comparing two simulators of different sizes tells the environment axis from a constant of the same length.
    Raises ValueError where the shapes differ in any other way (several axes, or environments folded into another).
    """
    if shape == other:
        return None
    axes = [i for i, (a, b) in enumerate(zip(shape, other, strict=False)) if a != b]
    if len(shape) != len(other) or len(axes) != 1 or (shape[axes[0]], other[axes[0]]) != (num_envs, other_envs):
        raise ValueError(f"shapes {tuple(shape)} and {tuple(other)} differ in more than one environment axis")
    return axes[0]


def counts_environments(rows: Tensor, axis: int) -> bool:
    """Whether a tensor is an index: integers that grow evenly along the environment axis, as torch.arange(E) does.

    Such a row says which environment it is of; another's must not be put in its place.
    """
    if rows.is_floating_point() or rows.dtype == torch.bool or rows.shape[axis] < 3:
        return False
    grows = rows.diff(dim=axis)
    return bool((grows == grows.narrow(axis, 0, 1)).all() & (grows != 0).all())
