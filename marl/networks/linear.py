"""One linear layer: linear and logistic regression."""

import math

from torch import Tensor, nn

from marl.networks.common import Shape, Width, shape_tuple


class Linear(nn.Module):
    """y = W x + b. forward: float [..., *in_shape] → float [..., out_features]; images are flattened."""

    def __init__(self, in_shape: Shape, out_features: Width, bias: bool = True) -> None:
        super().__init__()
        self.in_shape = shape_tuple(in_shape)
        self.out_features = out_features
        self.head = nn.Linear(math.prod(self.in_shape), out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(-len(self.in_shape)))
