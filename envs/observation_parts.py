"""Where the parts of observations come from, and what their features are called.

Shapes: E environments, A agents, F features, (C, H, W) pictures, (N, F) sets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from envs.spec import GroupSpec, ObservationPart

WHOLE = "observation"  # the name of the only part, where the environment gives none
BYTE = 255.0  # what uint8 pictures are divided by
CHANNELS = (1, 3, 4)  # grey, colours, colours with opacity: what a picture's last dimension may be


def part_of(name: str, shape: Sequence[int], byte: bool = False) -> tuple[ObservationPart, Tensor | None]:
    """The part that an array of this shape is, and the order in which its numbers go into the flat observation.

    Three dimensions are a picture, two a set, all others a vector. A picture whose last dimension is 1, 3 or 4 and
    smaller than the others lies as [H, W, C]; its numbers are reordered to [C, H, W]. byte: whether it holds uint8.

    Returns:
        The part; int64 [size], which number comes first, second, …; None where they stay in their order.
    """
    shape = tuple(map(int, shape))
    if len(shape) != 3:
        return (ObservationPart(name, shape, "set") if len(shape) == 2 else
                ObservationPart(name, (math.prod(shape),))), None  # fmt: skip
    scale = BYTE if byte else 1.0
    if shape[2] in CHANNELS and shape[2] < min(shape[:2]):
        order = torch.arange(math.prod(shape)).view(shape).permute(2, 0, 1).flatten()
        return ObservationPart(name, (shape[2], *shape[:2]), "picture", scale), order
    return ObservationPart(name, shape, "picture", scale), None


def joined(
    found: Sequence[tuple[ObservationPart, Tensor | None]],
) -> tuple[tuple[ObservationPart, ...], Tensor | None]:
    """Parts one after the other, and the order of all their numbers, from `part_of` of each."""
    parts, orders = tuple(part for part, _ in found), [order for _, order in found]
    if all(order is None for order in orders):
        return parts, None
    places = torch.arange(sum(part.size for part in parts)).split([part.size for part in parts])
    pairs = zip(places, orders, strict=True)
    return parts, torch.cat([place if order is None else place[order] for place, order in pairs])


def of_tensors(observation: Tensor | dict[str, Any], prefix: str = "") -> tuple[ObservationPart, ...]:
    """The parts of a simulator's observation, as `envs.grouping.flatten` joins them: sorted keys, nested by dots.

    Tensors [E, …]; pictures [E, C, H, W]. () for a plain one [E, F], whose features have no names.
    """
    if isinstance(observation, dict):
        nested = [of_tensors(observation[key], f"{prefix}{key}.") for key in sorted(observation)]
        return tuple(itertools.chain.from_iterable(nested))
    shape = observation.shape[1:]
    if not prefix and len(shape) < 2:
        return ()
    scale = BYTE if observation.dtype == torch.uint8 and len(shape) == 3 else 1.0
    kinds: dict[int, Literal["vector", "set", "picture"]] = {2: "set", 3: "picture"}
    kind = kinds.get(len(shape), "vector")
    return (ObservationPart(prefix[:-1] or WHOLE, tuple(shape) if kind != "vector" else (shape.numel(),), kind, scale),)


def feature_names(group: GroupSpec) -> list[str]:
    """A name for each of the observation's F features: "lidar[3]", "others[2,0]", "speed"; their numbers without parts.

    Features of a vector are numbered, unless it has one only; those of sets are [thing, feature], of pictures
    [channel, row, column].
    """
    if not group.parts:
        return [str(i) for i in range(group.observation_size)]
    names = []
    for part in group.parts:
        places = itertools.product(*map(range, part.shape))
        names += [part.name] if part.shape == (1,) else [f"{part.name}[{','.join(map(str, at))}]" for at in places]
    return names
