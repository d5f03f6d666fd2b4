"""LSTM and GRU: over a given sequence (the rows of an image, the steps of a series), or step by step with a memory."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from marl.core.errors import UserError
from marl.networks.common import (
    ActivationName,
    Gain,
    Init,
    Probability,
    Shape,
    Width,
    activation_module,
    initialise,
    shape_tuple,
)


class Cells(nn.Module):
    """`layers` recurrent cells on top of each other, stepped one by one so that any row can restart at any step.

    forward: float [L, N, F], memory [N, M], start bool [L, N] or None → outputs [L, N, hidden] of the last layer and
    the memory after each step [L, N, M]. The memory holds the layers' h, the first layer's first, then (LSTM) their c:
    M = layers · hidden, or twice that.
    """

    def __init__(self, cell: type[nn.GRUCell | nn.LSTMCell], features: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cell(features if i == 0 else hidden, hidden) for i in range(layers))
        self.hidden, self.layers = hidden, layers
        self.memory_size = (2 if cell is nn.LSTMCell else 1) * layers * hidden

    def forward(self, x: Tensor, memory: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        after, last = [], self.layers - 1
        for t, row in enumerate(x.unbind(0)):
            if start is not None:
                memory = memory.masked_fill(start[t].unsqueeze(-1), 0.0)
            parts = self._step(row, memory.split(self.hidden, -1))
            memory = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
            after.append(memory)
        memories = torch.stack(after)
        return memories[..., last * self.hidden : self.layers * self.hidden], memories

    def _step(self, x: Tensor, memory: tuple[Tensor, ...]) -> list[Tensor]:
        h, c = [], []
        for i, cell in enumerate(self.cells):
            if isinstance(cell, nn.LSTMCell):
                x, cell_state = cell(x, (memory[i], memory[self.layers + i]))
                c.append(cell_state)
            else:
                x = cell(x, memory[i])
            h.append(x)
        return h + c


class _Recurrent(nn.Module):
    """(Linear → activation per unit count of `encoder`,) `layers` recurrent layers of `hidden` units, a linear head.

    in_shape (L, F): a whole sequence of L steps; (C, H, W): an image, read row by row, as H steps of C·W features.
        forward: float [..., *in_shape] → float [..., out_features], from the last step's output.
    in_shape F: the steps of a stream, one after the other, for tasks that carry the memory along (agents).
        forward: float [L, ..., F], memory [..., M], start bool [L, …] or None → outputs [L, ..., out_features] and the
        memory after each step [L, ..., M]. Where `start` (its dimensions are x's first ones) the step begins with a
        memory of zeros, so that one call covers the ends of episodes. `memory_size` is M, and 0 for whole sequences.

    Raises UserError for an unsuitable shape, and for a stream without a memory.
    """

    body_class: type[nn.GRU | nn.LSTM]
    cell_class: type[nn.GRUCell | nn.LSTMCell]

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        hidden: Width = 128,
        layers: Width = 1,
        dropout: Probability = 0.0,
        encoder: Sequence[Width] = (),
        activation: ActivationName = "tanh",
        last_gain: Gain | None = None,
        init: Init = "default",
        gain: Gain | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = shape_tuple(in_shape)
        self.out_features = out_features
        features = self.in_shape[-1] * (self.in_shape[0] if len(self.in_shape) == 3 else 1)
        if len(self.in_shape) > 3:
            raise UserError(f"{self._name()}: {READS}, not inputs {self.in_shape}")
        if dropout and layers == 1:
            raise UserError(f"network.dropout={dropout}: acts between its layers; with network.layers=1 it must be 0")
        streams = len(self.in_shape) == 1
        if dropout and streams:
            raise UserError(f"network.dropout={dropout}: must be 0 for agents, whose policy is one function per update")
        widths = [features, *encoder]
        self.width = widths[-1]
        layered = [(nn.Linear(a, b), activation_module(activation)) for a, b in pairwise(widths)]
        self.encoder = nn.Sequential(*(module for pair in layered for module in pair))
        if streams:
            self.body = Cells(self.cell_class, self.width, hidden, layers)
            self.memory_size = self.body.memory_size
        else:
            self.body = self.body_class(self.width, hidden, layers, batch_first=True, dropout=dropout)
            self.memory_size = 0
        self.head = nn.Linear(hidden, out_features)
        initialise(nn.ModuleList([self.encoder, self.body]), self.head, activation, init, last_gain, gain)

    def forward(
        self, x: Tensor, memory: Tensor | None = None, start: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if self.memory_size:
            return self._stream(x, memory, start)
        leading = x.shape[: x.dim() - len(self.in_shape)]
        x = x.reshape(-1, *self.in_shape)
        if len(self.in_shape) == 3:
            x = x.transpose(1, 2).flatten(2)  # [N, C, H, W] → [N, H, C·W]: one image row per step
        steps, _ = self.body(self.encoder(x))
        return self.head(steps[:, -1]).reshape(*leading, self.out_features)

    def _stream(self, x: Tensor, memory: Tensor | None, start: Tensor | None) -> tuple[Tensor, Tensor]:
        if memory is None:
            raise UserError(
                f"{self._name()}: {READS}, not inputs {self.in_shape}, unless its memory is carried from step to step"
            )
        leading, rows = x.shape[:-1], math.prod(x.shape[1:-1])  # rows may be 0, so no size below is left to torch
        if start is not None:
            start = start.reshape(*start.shape, *[1] * (len(leading) - start.dim()))
            start = start.expand(leading).reshape(leading[0], rows)
        encoded = self.encoder(x).reshape(leading[0], rows, self.width)
        out, memories = self.body(encoded, memory.reshape(rows, self.memory_size), start)
        return self.head(out).reshape(*leading, self.out_features), memories.reshape(*leading, self.memory_size)

    def _name(self) -> str:
        return f"network={type(self).__name__.lower()}"


READS = "reads sequences (length, features) or images (channels, height, width)"


class LSTM(_Recurrent):
    """An encoder, recurrent layers of LSTM cells (Hochreiter and Schmidhuber 1997), a linear head.

    in_shape (L, F): a whole sequence; forward: float [..., L, F] → float [..., out_features], from the last step.
    in_shape F: a stream; forward: float [L, ..., F], memory [..., M], start bool → outputs and memory of each step.
    """

    body_class, cell_class = nn.LSTM, nn.LSTMCell


class GRU(_Recurrent):
    """An encoder, recurrent layers of GRU cells (Cho et al. 2014), a linear head.

    in_shape (L, F): a whole sequence; forward: float [..., L, F] → float [..., out_features], from the last step.
    in_shape F: a stream; forward: float [L, ..., F], memory [..., M], start bool → outputs and memory of each step.
    """

    body_class, cell_class = nn.GRU, nn.GRUCell
