"""Observations of gymnasium's spaces as rows of numbers, and the parts that such a row has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from torch import Tensor

from envs.observation_parts import WHOLE, joined, part_of
from envs.spec import ObservationPart


class ObservationRow:
    """How the observations of a space become rows of numbers: gymnasium's `flatten`, with pictures as [C, H, W].

    Dict and Tuple spaces are joined in their order and their parts named by keys, or places, with dots between.
    Discrete choices are one-hot. A Box of rank 1 alone has no parts: its features have no names.
    """

    def __init__(self, space: gymnasium.Space) -> None:
        self.space, self.size = space, spaces.flatdim(space)
        parts, order = joined(list(leaves(space)))
        named = isinstance(space, spaces.Dict | spaces.Tuple) or len(parts[0].shape) > 1
        self.parts, self.order = parts if named else (), None if order is None else order.numpy()

    def __call__(self, observation: Any) -> np.ndarray:
        """One observation as numbers [F]."""
        return self.ordered(spaces.flatten(self.space, observation))

    def ordered(self, rows: np.ndarray) -> np.ndarray:
        """Rows [..., F] in the space's own order, in that of the parts."""
        return rows if self.order is None else rows[..., self.order]


def leaves(space: gymnasium.Space, prefix: str = "") -> Iterator[tuple[ObservationPart, Tensor | None]]:
    """The parts of a space in the order of `spaces.flatten`, each with the order of its numbers."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inside = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, each in inside:
            yield from leaves(each, f"{prefix}{key}.")
        return
    name = prefix[:-1] or WHOLE
    if isinstance(space, spaces.Box):
        byte = space.dtype == np.uint8
        yield part_of(name, space.shape, byte)
    else:
        yield part_of(name, (spaces.flatdim(space),))
