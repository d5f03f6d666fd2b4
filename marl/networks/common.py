"""What the networks share: input shapes, activations by name, initialisation."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from marl.core.errors import UserError, closest

ActivationName = Literal["tanh", "relu", "gelu", "silu", "elu", "leaky_relu", "mish"]
InitName = Literal["default", "orthogonal", "xavier", "kaiming", "normal", "zeros"]
LayerKind = Literal["linear", "conv", "recurrent", "embedding", "head"]
Init = InitName | float | dict[LayerKind, InitName | float]
Shape = int | tuple[int, ...]
Width = Annotated[int, Field(ge=1, le=1_000_000)]
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


def without_head(init: Init) -> Init:
    """`init` for the parts of a network before its head: what is about the head alone is left out."""
    if isinstance(init, Mapping):
        return {layers: rule for layers, rule in init.items() if layers != "head"}
    return "default" if init == "zeros" else init


@torch.no_grad()
def initialise(
    body: nn.Module, head: nn.Linear, activation: str, init: Init, last_gain: float | None, gain: float | None = None
) -> None:
    """Initialise `body` and `head` in place.

    default     PyTorch's own (uniform, ±1/√fan_in)
    orthogonal  weights orthogonal, times the gain (Saxe et al. 2014; PPO's and MAPPO's implementations)
    xavier      uniform, ±gain·√(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)
    kaiming     normal, deviation gain/√fan_in (He et al. 2015)
    normal      normal, deviation 0.02 (as in GPT-2)
    zeros       the head 0, so that every output begins equal; the body stays PyTorch's own
    a number    that constant

    A name or number is for linear, convolution and recurrent layers, with the `gain` of the activation unless one is
    given (recurrent ones: 1). A mapping chooses by type of layer, {linear, conv, recurrent, embedding, head: name or
    number}: what it does not name stays PyTorch's own, but for a head, which follows `linear`; "zeros" there is the
    constant 0.

    All but the default set biases to 0; the head's gain is `last_gain` (1 if None). A `last_gain` makes the head
    orthogonal where its initialisation is "default", "normal" or "zeros".
    """
    rules: dict[LayerKind, InitName | float]
    rules = dict(init) if isinstance(init, Mapping) else dict.fromkeys(("linear", "conv", "recurrent"), init)
    if unknown := set(rules) - set(get_args(LayerKind)):
        raise UserError(f"init: no layers {sorted(unknown)[0]!r} (allowed are {', '.join(get_args(LayerKind))})")
    for rule in rules.values():
        if not isinstance(rule, int | float) and rule not in get_args(InitName):
            raise UserError(f"init={rule!r}: unknown (allowed are {', '.join(get_args(InitName))}, or a number)")
    gain = gain or GAINS.get(activation, math.sqrt(2.0))
    for layer in body.modules():
        kind = next((name for name, types in LAYERS.items() if isinstance(layer, types)), None)
        if kind is not None and kind in rules and not (rules[kind] == "zeros" and not isinstance(init, Mapping)):
            _fill(layer, rules[kind], 1.0 if kind == "recurrent" else gain)
    rule = rules.get("head", rules.get("linear", "default"))
    _fill(head, rule, 1.0 if last_gain is None else last_gain)
    if last_gain is not None and rule in ("default", "normal", "zeros"):
        _fill(head, "orthogonal", last_gain)


LAYERS: dict[str, Any] = {
    "linear": nn.Linear,
    "conv": nn.modules.conv._ConvNd,
    "recurrent": (nn.RNNBase, nn.RNNCellBase),
    "embedding": nn.Embedding,
}
FILLERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "orthogonal": nn.init.orthogonal_,
    "xavier": nn.init.xavier_uniform_,
    "kaiming": lambda weight, gain: nn.init.normal_(weight, 0.0, gain / math.sqrt(weight[0].numel())),
    "normal": lambda weight, gain: nn.init.normal_(weight, 0.0, 0.02),
    "zeros": lambda weight, gain: nn.init.zeros_(weight),
}


def _fill(layer: nn.Module, rule: str | float, gain: float) -> None:
    if rule == "default":
        return
    for name, parameter in layer.named_parameters(recurse=False):
        if "bias" in name:
            nn.init.zeros_(parameter)
        elif isinstance(rule, str):
            FILLERS[rule](parameter, gain)
        else:
            nn.init.constant_(parameter, rule)
