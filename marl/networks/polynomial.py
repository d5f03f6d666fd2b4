"""Polynomials of the inputs: the simplest network whose features are not linear."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from marl.networks.common import Shape, Width, shape_tuple

Degree = Annotated[int, Field(ge=1)]


class Polynomial(nn.Module):
    """y = b + Σₖ wₖ · Tₖ(x), k = 1 … degree, of every input: float [..., *in_shape] → float [..., out_features].

    Tₖ are Chebyshev polynomials (T₁ = x, T₂ = 2x² − 1, Tₖ₊₁ = 2x Tₖ − Tₖ₋₁): any polynomial is a sum of them, and
    between −1 and 1 they are nearly uncorrelated where plain powers are nearly the same, so gradient descent gets on.
    Inputs are divided by 2, which brings scaled ones (deviation 1) mostly in between. No products of different inputs.
    """

    def __init__(self, in_shape: Shape, out_features: Width, degree: Degree = 5, bias: bool = True) -> None:
        super().__init__()
        self.in_shape, self.out_features, self.degree = shape_tuple(in_shape), out_features, degree
        self.head = nn.Linear(math.prod(self.in_shape) * degree, out_features, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(-len(self.in_shape)) / 2
        powers = [torch.ones_like(x), x]
        for _ in range(self.degree - 1):
            powers.append(2 * x * powers[-1] - powers[-2])
        return self.head(torch.cat(powers[1:], -1))
