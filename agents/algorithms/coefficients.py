"""Coefficients of the loss that change over a run."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Shape = Literal["constant", "linear", "cosine"]


class Scheduled(nn.Module):
    """A coefficient of the loss: `value` is what it is now.

        linear: first + (last - first) p        cosine: last + (first - last) (1 + cos(pi p)) / 2

    over the run's progress p from 0 to 1. A constant is a plain number; what changes is a scalar on the device, so that
    a compiled or captured loss reads the new value without being built again.

    Args:
        first, last: value at the beginning and at the end.
        shape: see above; constant = first, always.
    """

    current: Tensor | None

    def __init__(self, first: float, shape: Shape = "constant", last: float = 0.0) -> None:
        super().__init__()
        self.first, self.last, self.shape = first, last, shape
        moving = shape != "constant"
        self.matters = first > 0 or (moving and last > 0)
        self.register_buffer("current", torch.tensor(first) if moving else None, persistent=False)

    @property
    def value(self) -> float | Tensor:
        """The coefficient now, a number or a scalar on the device."""
        return self.first if self.current is None else self.current

    def at(self, progress: float) -> float:
        """The coefficient at `progress`, 0 to 1."""
        if self.shape == "linear":
            return self.first + (self.last - self.first) * progress
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * progress)) / 2

    def advance(self, progress: float) -> float:
        """Go to `progress` of the run; returns the coefficient. For those that move only."""
        value = self.at(progress)
        assert self.current is not None
        self.current.fill_(value)
        return value
