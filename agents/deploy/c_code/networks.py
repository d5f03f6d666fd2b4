"""A policy's networks as a list of operations for C: what each layer computes, with its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from marl.core.errors import UserError
from marl.networks import ACTIVATIONS, GRU, LSTM, MLP, Linear

NAMES = {module: name for name, module in ACTIVATIONS.items()}


@dataclass
class Operation:
    """One step of a network.

    kind: linear | affine (a scale and a shift for each number: batch normalisation at rest) | layer_norm | gru | lstm |
    the name of an activation.
    size: numbers that come out. tensors: float32, by their roles; weights are [out, in].
    """

    kind: str
    size: int
    tensors: dict[str, Tensor | None] = field(default_factory=dict)
    eps: float = 0.0


def operations(network: nn.Module, rows: Sequence[int]) -> list[Operation]:
    """The operations of a network, first to last. rows: the outputs that are needed.

    Raises UserError for networks that are none of MLP, Linear, GRU and LSTM.
    """
    if not isinstance(network, (MLP, Linear, GRU, LSTM)):
        raise UserError(
            f"format=c: network={type(network).__name__} can't be written as C; MLP, Linear, GRU and LSTM can"
        )
    recurrent = isinstance(network, (GRU, LSTM))
    out = _layers([*(network.encoder if recurrent else getattr(network, "body", ()))])
    for cell in network.body.cells if recurrent else ():
        kind = "lstm" if isinstance(cell, nn.LSTMCell) else "gru"
        names = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
        out.append(Operation(kind, cell.hidden_size, {name: _plain(getattr(cell, name)) for name in names}))
    head = network.head
    bias = None if head.bias is None else _plain(head.bias)[list(rows)]
    return [*out, Operation("linear", len(rows), {"weight": _plain(head.weight)[list(rows)], "bias": bias})]


def _layers(layers: Sequence[nn.Module]) -> list[Operation]:
    out: list[Operation] = []
    for layer in layers:
        if isinstance(layer, nn.Linear):
            tensors = {"weight": _plain(layer.weight), "bias": None if layer.bias is None else _plain(layer.bias)}
            out.append(Operation("linear", layer.out_features, tensors))
        elif isinstance(layer, nn.LayerNorm):
            tensors = {"weight": _plain(layer.weight), "bias": _plain(layer.bias)}
            out.append(Operation("layer_norm", out[-1].size, tensors, layer.eps))
        elif isinstance(layer, nn.BatchNorm1d):
            scale = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
            shift = layer.bias.double() - layer.running_mean.double() * scale
            out.append(Operation("affine", out[-1].size, {"scale": _plain(scale), "shift": _plain(shift)}))
        elif type(layer) in NAMES:
            out.append(Operation(NAMES[type(layer)], out[-1].size))
        elif not isinstance(layer, nn.Dropout):
            raise UserError(f"format=c: a layer {type(layer).__name__} can't be written as C")
    return out


def _plain(values: Tensor) -> Tensor:
    return values.detach().cpu().float().contiguous()


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [out, in] in eight bits: int8 [out, in], -127 to 127, and what a step of each row is worth, [out]."""
    scale = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight / scale.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8), scale


@torch.no_grad()
def quantise(module: nn.Module) -> None:
    """Rounds the weights of all linear layers and cells of a module as `quantised` does."""
    for layer in module.modules():
        for name in ("weight", "weight_ih", "weight_hh"):
            weight = getattr(layer, name, None)
            if isinstance(layer, (nn.Linear, nn.GRUCell, nn.LSTMCell)) and weight is not None:
                steps, scale = quantised(weight)
                weight.copy_(steps * scale.unsqueeze(1))
