"""What the networks share: input shapes, activations by name, initialisation."""

import math
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field
from torch import nn

from marl.errors import UserError, closest

ActivationName = Literal["tanh", "relu", "gelu", "silu", "elu", "leaky_relu", "mish"]
InitName = Literal["default", "orthogonal"]
Shape = int | tuple[int, ...]
Width = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Gain = Annotated[float, Field(gt=0)]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
}

# torch.nn.init.calculate_gain's; it has no entry for the smooth relatives of relu, which take relu's √2.
GAINS = {"tanh": 5 / 3, "leaky_relu": math.sqrt(2 / (1 + 0.01**2))}


def shape_tuple(in_shape: Shape) -> tuple[int, ...]:
    """`in_shape` as a tuple of positive ints: 5 → (5,). Raises UserError where it isn't one."""
    shape = (in_shape,) if isinstance(in_shape, int) else tuple(in_shape)
    if not shape or any(size < 1 for size in shape):
        raise UserError(f"in_shape={in_shape!r}: must be a positive int or a tuple of them")
    return shape


def activation_module(name: str) -> nn.Module:
    """A new activation module by its name. Raises UserError, listing the names, for another one."""
    if name not in ACTIVATIONS:
        hint = closest(name, ACTIVATIONS)
        raise UserError(f"activation={name!r}: unknown{hint} (allowed are {', '.join(ACTIVATIONS)})")
    return ACTIVATIONS[name]()


@torch.no_grad()
def initialise(body: nn.Module, head: nn.Linear, activation: str, init: str, last_gain: float | None) -> None:
    """Initialise `body` and `head` in place.

    "default" leaves PyTorch's own initialisation (uniform, ±1/√fan_in). "orthogonal" (Saxe et al. 2014; PPO's
    and MAPPO's implementations): every linear and convolution weight orthogonal with its activation's gain,
    biases 0, the head with `last_gain` (1 if None). A `last_gain` makes the head orthogonal in either case.
    """
    if init not in get_args(InitName):
        raise UserError(f"init={init!r}: unknown (allowed are {', '.join(get_args(InitName))})")
    if init == "orthogonal":
        gain = GAINS.get(activation, math.sqrt(2.0))
        for layer in body.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                _orthogonal(layer, gain)
    if init == "orthogonal" or last_gain is not None:
        _orthogonal(head, 1.0 if last_gain is None else last_gain)


def _orthogonal(layer: nn.Linear | nn.Conv2d, gain: float) -> None:
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
