"""A network of one's own: residual blocks."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import nn


class Residual(nn.Module):
    """x -> x + f(x), `depth` times over, between two linear layers; float [..., *in_shape] -> [..., out_features].

    The types are the schema of its YAML: depth=0 or depth=two is refused in a sentence.
    """

    def __init__(
        self,
        in_shape: int | tuple[int, ...],
        out_features: int,
        width: Annotated[int, Field(ge=1)] = 64,
        depth: Annotated[int, Field(ge=1)] = 2,
    ):
        super().__init__()
        shape = (in_shape,) if isinstance(in_shape, int) else tuple(in_shape)  # (8, 8) for images, F for observations
        self.inner = len(shape)
        self.first = nn.Linear(math.prod(shape), width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, out_features)

    def forward(self, x):
        x = self.first(x.flatten(-self.inner))
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.head(x)
