"""What the networks share: input shapes, activations by name, initialisation."""

import math
from collections.abc import Callable
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from marl.errors import UserError, closest

ActivationName = Literal["tanh", "relu", "gelu", "silu", "elu", "leaky_relu", "mish"]
InitName = Literal["default", "orthogonal", "xavier", "kaiming", "normal", "zeros"]
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

    default     PyTorch's own (uniform, ±1/√fan_in)
    orthogonal  every linear and convolution weight orthogonal with its activation's gain (Saxe et al. 2014; PPO's and
                MAPPO's implementations)
    xavier      uniform, ±gain·√(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)
    kaiming     normal, deviation gain/√fan_in (He et al. 2015)
    normal      normal, deviation 0.02 (as in GPT-2)
    zeros       the head 0, so that every output begins equal; the body stays PyTorch's own

    All but the default set biases to 0; the head's gain is `last_gain` (1 if None). A `last_gain` makes the head
    orthogonal where the initialisation is "default", "normal" or "zeros".
    """
    if init not in get_args(InitName):
        raise UserError(f"init={init!r}: unknown (allowed are {', '.join(get_args(InitName))})")
    gain = GAINS.get(activation, math.sqrt(2.0))
    if init in FILLERS:
        for layer in body.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                _fill(layer, FILLERS[init], gain)
        _fill(head, FILLERS[init], 1.0 if last_gain is None else last_gain)
    if init == "zeros":
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    if last_gain is not None and init in ("default", "normal", "zeros"):
        _fill(head, FILLERS["orthogonal"], last_gain)


FILLERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "orthogonal": nn.init.orthogonal_,
    "xavier": nn.init.xavier_uniform_,
    "kaiming": lambda weight, gain: nn.init.normal_(weight, 0.0, gain / math.sqrt(weight[0].numel())),
    "normal": lambda weight, gain: nn.init.normal_(weight, 0.0, 0.02),
}


def _fill(layer: nn.Linear | nn.Conv2d, filler: Callable[[Tensor, float], Tensor], gain: float) -> None:
    filler(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
