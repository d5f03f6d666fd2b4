"""Supervised losses that need more than torch's own say in a config file; any torch.nn loss works by dotted path."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

Positive = Annotated[float, Field(gt=0)]


class CrossEntropy(nn.Module):
    """−log softmax(outputs)[target], averaged: outputs [B, K] float against classes [B] int64 → [].

    `label_smoothing` ε moves that share of the target to all classes evenly (Szegedy et al. 2016); `weight` prices
    the K classes, as a list, where torch.nn.CrossEntropyLoss asks for a tensor. Raises ValueError for K = 1, of which
    the loss is 0 whatever the output.
    """

    def __init__(
        self,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        weight: Sequence[Positive] | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", None if weight is None else torch.tensor(weight, dtype=torch.float32))

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        if outputs.shape[-1] == 1:
            raise ValueError("the softmax of one output is always 1; a yes or no takes BinaryCrossEntropy")
        return F.cross_entropy(outputs, target, self.weight, label_smoothing=self.label_smoothing)


class BinaryCrossEntropy(nn.Module):
    """−[w·y·log σ(z) + (1 − y)·log(1 − σ(z))], averaged: logits z [B, O] against y [B, O] float in [0, 1] → [].

    `positive_weight` w prices the positives, for sets in which they are rare.
    """

    def __init__(self, positive_weight: Positive = 1.0) -> None:
        super().__init__()
        self.register_buffer("positive_weight", torch.tensor(positive_weight))

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, target, pos_weight=self.positive_weight)
