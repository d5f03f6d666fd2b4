"""What a network is told of the parts of its flat input, and which networks want to know."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from marl.core.errors import UserError

PartKind = Literal["vector", "picture", "set"]
KINDS: dict[int, PartKind] = {1: "vector", 2: "set", 3: "picture"}  # by the number of dimensions


@dataclass(frozen=True)
class Part:
    """`size` neighbouring numbers of a flat input, and the shape in which they are read.

    shape: (n,) of a vector, (N, F) of a set of N things, (C, H, W) of a picture. Parts of one name are read by one
    encoder, so they have one shape and kind: what every agent of a team sees, say.
    """

    name: str
    shape: tuple[int, ...]
    kind: PartKind = "vector"

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} is a {self.kind} {list(self.shape)}"


def reads_parts(network: object) -> bool:
    """Whether a network, or a factory of networks, wants to know the parts: its class says `reads_parts = True`.

    Such a class is built as `Network(in_shape, out_features, …, parts=…, names=…)`, see `with_parts`.
    """
    while isinstance(network, partial):
        network = network.func
    return bool(getattr(network, "reads_parts", False))


def with_parts(
    network: Callable[..., nn.Module], parts: Sequence[Part] | None = None, names: Iterable[str] | None = None
) -> Callable[..., nn.Module]:
    """The factory, told of the input's parts where it wants to know them; as it is where it doesn't.

    names: of parts that other networks with the same settings read, so that settings which name them are no mistake.
    """
    if not reads_parts(network):
        return network
    told = {"parts": None if parts is None else tuple(parts), "names": None if names is None else tuple(names)}
    return partial(network, **{key: value for key, value in told.items() if value is not None})


def check_parts(parts: Sequence[Part], features: int) -> None:
    """Raise UserError unless the parts make up an input of so many features, those of one name being equal."""
    total = sum(part.size for part in parts)
    if total != features:
        raise UserError(f"parts: {', '.join(map(str, parts))} are {total} numbers, and the input has {features}")
    known: dict[str, Part] = {}
    for part in parts:
        first = known.setdefault(part.name, part)
        if first != part:
            raise UserError(f"parts: two of one name must be alike, but {first} and then {part}; rename one of them")
