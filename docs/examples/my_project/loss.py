"""A loss of one's own: log-cosh, squared for small errors and absolute for large ones."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F


class LogCosh(nn.Module):
    """mean of s^2 log cosh(error / s): outputs and target float [B, O] -> []."""

    def __init__(self, scale: Annotated[float, Field(gt=0)] = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, outputs, target):
        x = torch.abs(outputs - target) / self.scale
        return self.scale**2 * (x + F.softplus(-2 * x) - math.log(2)).mean()  # log cosh x, without overflow
