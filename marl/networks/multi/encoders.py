"""Encoders of single parts: what each reads, and how it is built.

Shapes: n numbers of a vector, (N, F) a set of N things, (C, H, W) a picture, `...` any leading dimensions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from marl.core.errors import UserError
from marl.core.schema import check_arguments
from marl.networks.cnn import CNN
from marl.networks.common import ActivationName, Gain, Init, Shape, Width, activation_module, initialise, shape_tuple
from marl.networks.mlp import MLP
from marl.networks.multi.part import Part, PartKind
from marl.networks.team import Attention, DeepSets, Pool

Widths = Sequence[Width]


@dataclass(frozen=True)
class Style:
    """What all encoders of a network have in common, unless their settings say otherwise."""

    activation: ActivationName = "tanh"
    init: Init = "default"
    gain: Gain | None = None


class Encoder(nn.Module):
    """A network and the activation after it: [..., *shape] → [..., out_features]."""

    def __init__(self, network: nn.Module, activation: ActivationName) -> None:
        super().__init__()
        self.network, self.out_features = network, network.out_features
        self.act = activation_module(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.network(x))


class Flat(nn.Module):
    """A part's numbers as they are, in one row: [..., *shape] → [..., size]."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.out_features, self.dims = part.size, len(part.shape)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.dims == 1 else x.flatten(-self.dims)


class CNN1d(nn.Module):
    """Convolutions around a ring, each with its activation, then a linear head; the last place adjoins the first.

    forward: float [..., n], a ring of n numbers, or [..., N, F], N places of F each → [..., out_features].
    Turning the ring turns what the head reads. Raises UserError for an even `kernel_size`, or one larger than the ring.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        channels: Widths = (16, 16),
        kernel_size: Width = 3,
        activation: ActivationName = "tanh",
        init: Init = "default",
        gain: Gain | None = None,
    ) -> None:
        super().__init__()
        self.in_shape, self.out_features = shape_tuple(in_shape), out_features
        places, depth = (*self.in_shape, 1)[:2]
        if kernel_size % 2 == 0 or kernel_size > places:
            raise UserError(f"network.kernel_size={kernel_size}: must be odd, and at most the ring's {places}")
        self.reach = kernel_size // 2
        depths = [depth, *channels]
        self.body = nn.ModuleList(nn.Conv1d(a, b, kernel_size) for a, b in zip(depths, channels, strict=False))
        self.act = activation_module(activation)
        self.head = nn.Linear(depths[-1] * places, out_features)
        initialise(self.body, self.head, activation, init, None, gain)

    def forward(self, x: Tensor) -> Tensor:
        leading = x.shape[: x.dim() - len(self.in_shape)]
        places, depth = (*self.in_shape, 1)[:2]
        x = x.reshape(-1, places, depth).transpose(1, 2)
        for layer in self.body:
            x = torch.cat([x[..., places - self.reach :], x, x[..., : self.reach]], -1)
            x = self.act(layer(x))
        return self.head(x.flatten(1)).reshape(*leading, self.out_features)


def flat(part: Part, style: Style, /) -> nn.Module:
    """The numbers as they are."""
    return Flat(part)


def mlp(
    part: Part, style: Style, /, hidden: Widths = (64,), out: Width = 64, activation: ActivationName | None = None
) -> nn.Module:
    """An MLP over all numbers."""
    act = activation or style.activation
    return Encoder(MLP(part.shape, out, hidden, act, init=style.init, gain=style.gain), act)


def cnn(
    part: Part,
    style: Style,
    /,
    channels: Widths = (16, 32),
    kernel_size: Width = 3,
    stride: Width = 1,
    padding: Annotated[int, Field(ge=0)] = 1,
    pool: Width = 2,
    hidden: Widths = (),
    out: Width = 64,
    activation: ActivationName = "relu",
) -> nn.Module:
    """Convolutions over a picture; the settings are those of `network=cnn`."""
    network = CNN(part.shape, out, channels, kernel_size, stride, padding, pool, hidden, activation, 0.0, style.init,
                  gain=style.gain)  # fmt: skip
    return Encoder(network, activation)


def cnn1d(
    part: Part,
    style: Style,
    /,
    channels: Widths = (16, 16),
    kernel_size: Width = 3,
    out: Width = 64,
    activation: ActivationName | None = None,
) -> nn.Module:
    """Convolutions around a ring, such as a lidar's rays."""
    act = activation or style.activation
    return Encoder(CNN1d(part.shape, out, channels, kernel_size, act, style.init, style.gain), act)


def deep_sets(
    part: Part,
    style: Style,
    /,
    encoder: Annotated[Widths, Field(min_length=1)] = (64,),
    hidden: Annotated[Widths, Field(min_length=1)] = (64,),
    pool: Pool = "mean",
    out: Width = 64,
    activation: ActivationName | None = None,
) -> nn.Module:
    """Deep sets over the things of a set, in any order; the settings are those of `network=deep_sets`."""
    act = activation or style.activation
    return Encoder(DeepSets(part.shape, out, encoder, hidden, pool, act, style.init), act)


def attention(
    part: Part,
    style: Style,
    /,
    width: Width = 64,
    heads: Width = 4,
    layers: Width = 1,
    out: Width = 64,
    activation: ActivationName | None = None,
) -> nn.Module:
    """Attention among the things of a set, in any order; the settings are those of `network=attention`."""
    act = activation or style.activation
    return Encoder(Attention(part.shape, out, width, heads, layers, act, style.init), act)


# Each kind's encoders, the first of them being its own where nothing is said.
READ: dict[PartKind, dict[str, Callable[..., nn.Module]]] = {
    "vector": {"flat": flat, "mlp": mlp, "cnn1d": cnn1d},
    "picture": {"cnn": cnn, "mlp": mlp, "flat": flat},
    "set": {"deep_sets": deep_sets, "attention": attention, "mlp": mlp, "cnn1d": cnn1d, "flat": flat},
}


def make_encoder(part: Part, name: str | None, settings: Mapping[str, Any], style: Style, key: str) -> nn.Module:
    """The encoder of a part: a module [..., *shape] → [..., out_features].

    name: None for the kind's own. settings: of that encoder. key: where they are written, for messages.

    Raises:
        UserError: an encoder that can't read such a part, or settings that it has not.
    """
    known = READ[part.kind]
    if name is not None and name not in known:
        raise UserError(f"{key}={name}: can't read {part.name}, a {part.kind} {list(part.shape)} "
                        f"(allowed are {', '.join(known)})")  # fmt: skip
    make = known[name or next(iter(known))]
    check_arguments(make, settings, key)
    try:
        return make(part, style, **settings)
    except UserError as error:  # of the network inside, which knows its settings by another key
        raise UserError(str(error).replace("network.", f"{key}.")) from None
