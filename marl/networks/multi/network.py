"""A network that reads observations of several parts: one encoder per part, then a trunk over what they say.

Shapes: F numbers of the flat input, K parts of one name, `...` any leading dimensions.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from marl.core.errors import UserError, closest
from marl.core.schema import show
from marl.networks.common import ActivationName, Gain, Init, Shape, Width, shape_tuple, without_head
from marl.networks.mlp import MLP
from marl.networks.multi.encoders import Style, make_encoder
from marl.networks.multi.part import KINDS, Part, check_parts
from marl.networks.recurrent import GRU, LSTM

EncoderName = Literal["flat", "mlp", "cnn", "cnn1d", "deep_sets", "attention"]


@dataclass(frozen=True)
class Choice:
    """The encoder that a pattern asks for; name: None for the kind's own. key: where it is written."""

    name: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    key: str = "network.encoders"


class Multi(nn.Module):
    """An encoder of its own for each part of the input, then an MLP, or cells with a memory, over all they say.

    forward: float [..., *in_shape] → float [..., out_features]. Parts of one name, such as what every agent of a team
    sees, go through one encoder. What the encoders say is joined in the alphabetical order of their parts' names, so
    the order in which the parts lie in the input changes nothing. With `memory`: float [L, ..., F], memory [..., M],
    start bool [L, …] or None → outputs and the memory after each step, as `marl.networks.recurrent` does.

    Args:
        encoders: {name of a part, or a pattern with * and ?: name of an encoder, or its settings with the name as
            `kind`}. A name beats a pattern, a longer pattern a shorter one. Parts that none matches get their kind's
            encoder: vectors are read as they are (flat), pictures by a cnn, sets by deep_sets.
        hidden: units of the trunk's layers, or of the linear layers before its cells.
        memory: gru or lstm for cells with `memory_units` after them.
        activation: of the trunk and of encoders that name none of their own.
        parts: of the flat input, in their order; None: the whole input is one part, "observation", a vector, a set or
            a picture by the number of its dimensions.
        names: of parts that other networks with the same settings read; `encoders` may name them too.

    Raises UserError for names that match no part, and encoders that can't read what they are for.
    """

    reads_parts = True

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        encoders: dict[str, EncoderName | dict[str, Any]] | None = None,
        hidden: Sequence[Width] = (64, 64),
        memory: Literal["gru", "lstm"] | None = None,
        memory_units: Width = 128,
        activation: ActivationName = "tanh",
        init: Init = "default",
        last_gain: Gain | None = None,
        gain: Gain | None = None,
        parts: Sequence[Part] | None = None,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.in_shape, self.out_features = shape_tuple(in_shape), out_features
        if parts is None:
            parts = [whole(self.in_shape)]
        check_parts(parts, math.prod(self.in_shape))
        self.parts, self.sizes = tuple(parts), [part.size for part in parts]
        by_name = {part.name: part for part in sorted(parts, key=lambda part: part.name)}
        self.places = [[i for i, part in enumerate(parts) if part.name == name] for name in by_name]
        choices = read_choices(encoders or {}, [*by_name, *names])
        style = Style(activation, without_head(init), gain)  # an encoder's last layer is not the network's
        self.encoders, width = nn.ModuleDict(), 0
        for (name, part), places in zip(by_name.items(), self.places, strict=True):
            choice = chosen(name, choices)
            encoder: Any = make_encoder(part, choice.name, choice.settings, style, choice.key)
            self.encoders[self._free(name)] = encoder
            width += encoder.out_features * len(places)
        if memory is None:
            self.trunk: MLP | GRU | LSTM = MLP(width, out_features, hidden, activation, init=init, last_gain=last_gain,
                                        gain=gain)  # fmt: skip
        else:
            cells = {"gru": GRU, "lstm": LSTM}[memory]
            self.trunk = cells(width, out_features, memory_units, 1, 0.0, hidden, activation, last_gain, init, gain)
        self.memory_size: int = getattr(self.trunk, "memory_size", 0)

    def _free(self, name: str) -> str:
        """A part's name as a module's, which has no dots and is not taken."""
        name = name.replace(".", "_")
        while hasattr(self.encoders, name) or name in self.encoders:
            name += "_"
        return name

    @property
    def head(self) -> nn.Linear:
        """The output layer."""
        return self.trunk.head

    def encode(self, x: Tensor) -> Tensor:
        """What the encoders say, joined: [..., *in_shape] → [..., width of the trunk's input]."""
        if len(self.in_shape) > 1:
            x = x.flatten(-len(self.in_shape))
        pieces = x.split(self.sizes, -1)
        codes = []
        for encoder, places in zip(self.encoders.values(), self.places, strict=True):
            shape = self.parts[places[0]].shape
            if len(places) == 1:
                piece = pieces[places[0]]
                codes.append(encoder(piece if len(shape) == 1 else piece.unflatten(-1, shape)))
            else:
                team = torch.stack([pieces[i] for i in places], -2)  # [..., K, numbers of one part]
                codes.append(encoder(team if len(shape) == 1 else team.unflatten(-1, shape)).flatten(-2))
        return codes[0] if len(codes) == 1 else torch.cat(codes, -1)

    def forward(
        self, x: Tensor, memory: Tensor | None = None, start: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.memory_size:
            return self.trunk(self.encode(x), memory, start)
        return self.trunk(self.encode(x))


def whole(in_shape: tuple[int, ...]) -> Part:
    """An input that has no parts as one."""
    kind = KINDS.get(len(in_shape), "vector")
    return Part("observation", in_shape if len(in_shape) in KINDS else (math.prod(in_shape),), kind)


def read_choices(encoders: Mapping[str, Any], names: Iterable[str]) -> dict[str, Choice]:
    """What `encoders` says, by pattern. Raises UserError for a pattern that none of `names` matches."""
    names, choices = list(dict.fromkeys(names)), {}
    for pattern, value in unnested(encoders, names).items():
        key = f"network.encoders.{pattern}"
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{key}={show(value)}: no part has such a name{closest(pattern, names)} "
                            f"(there are {', '.join(names)})")  # fmt: skip
        if isinstance(value, Mapping):
            settings = dict(value)
            choices[pattern] = Choice(settings.pop("kind", None), settings, key)
        else:
            choices[pattern] = Choice(value, {}, key)
    return choices


def unnested(encoders: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """`network.encoders.camera.left=cnn` as "camera.left": cnn, where parts have such names."""
    flat = {}
    for key, value in encoders.items():
        group = [name for name in names if name.startswith(f"{key}.")]
        if isinstance(value, Mapping) and group and key not in names:
            flat |= {f"{key}.{below}": one for below, one in
                     unnested(value, [name.removeprefix(f"{key}.") for name in group]).items()}  # fmt: skip
        else:
            flat[key] = value
    return flat


def chosen(name: str, choices: Mapping[str, Choice]) -> Choice:
    """The choice for a part: that of its name, or else of the longest pattern that matches."""
    matching = [pattern for pattern in choices if fnmatchcase(name, pattern)]
    return choices.get(name) or (choices[max(matching, key=len)] if matching else Choice())
