"""Losses that compare rows with one another: pairs, rankings, triplets; torch's own, fed from one network's outputs.

The network sees every member of a pair or triplet: inputs [B, 2 or 3, *in_shape] give outputs [B, 2 or 3, O].
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

Margin = Annotated[float, Field(ge=0)]


def _members(outputs: Tensor, count: int, what: str) -> tuple[Tensor, ...]:
    if outputs.dim() != 3 or outputs.shape[1] != count:
        raise ValueError(f"{what} takes outputs [B, {count}, O], from inputs [B, {count}, …]")
    return outputs.unbind(1)


def _signs(target: Tensor, rows: int) -> Tensor:
    """1 where the target is positive, −1 where it is 0 or negative: [B] or [B, 1] → [B]."""
    return torch.where(target.reshape(rows) > 0, 1.0, -1.0)


class HingeEmbedding(nn.Module):
    """d where the target is 1, max(0, margin − d) where it is 0 or −1, averaged; d is the distance of a pair's outputs.

    outputs [B, 2, O] against y [B] or [B, 1] → [] (Hadsell et al. 2006; `torch.nn.HingeEmbeddingLoss`): pairs of one
    kind come together, others at least `margin` apart.
    """

    def __init__(self, margin: Margin = 1.0) -> None:
        super().__init__()
        self.loss = nn.HingeEmbeddingLoss(margin)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        first, second = _members(outputs, 2, "a hinge embedding")
        return self.loss(F.pairwise_distance(first, second), _signs(target, len(outputs)))


class MarginRanking(nn.Module):
    """max(0, margin − s·(f(x₁) − f(x₂))), averaged; s is 1 where the first is to rank higher (target 1), else −1.

    outputs [B, 2, 1] (scores) against y [B] or [B, 1] → [] (`torch.nn.MarginRankingLoss`).
    """

    def __init__(self, margin: Margin = 1.0) -> None:
        super().__init__()
        self.loss = nn.MarginRankingLoss(margin)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        first, second = _members(outputs, 2, "a ranking")
        if outputs.shape[-1] != 1:
            raise ValueError("a ranking takes one score per row, outputs [B, 2, 1]")
        return self.loss(first.squeeze(-1), second.squeeze(-1), _signs(target, len(outputs)))


class TripletMargin(nn.Module):
    """max(0, d(anchor, positive) − d(anchor, negative) + margin), averaged, of outputs' distances d.

    outputs [B, 3, O] of anchor, positive and negative, whatever the target → [] (`torch.nn.TripletMarginLoss`, Schroff
    et al. 2015). Or outputs [B, O] against classes [B] int64: every row is an anchor, its positive the farthest row of
    its class in the minibatch, its negative the nearest of another (batch-hard, Hermans et al. 2017); rows without the
    one or the other don't count. `p`: norm of the distance. `swap`: the positive's distance to the negative counts
    where it is smaller (Balntas et al. 2016), for triplets that are given.
    """

    def __init__(self, margin: Margin = 1.0, p: Annotated[float, Field(gt=0)] = 2.0, swap: bool = False) -> None:
        super().__init__()
        self.margin, self.p = margin, p
        self.loss = nn.TripletMarginLoss(margin, p, swap=swap)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        if outputs.dim() == 2 and target.dtype == torch.int64:
            return self._batch_hard(outputs, target)
        return self.loss(*_members(outputs, 3, "a triplet loss"))

    def _batch_hard(self, outputs: Tensor, classes: Tensor) -> Tensor:
        distance = F.pairwise_distance(outputs.unsqueeze(1), outputs.unsqueeze(0), self.p)
        same = classes.unsqueeze(1) == classes.unsqueeze(0)
        others = same & ~torch.eye(len(classes), dtype=torch.bool, device=classes.device)
        positive = distance.masked_fill(~others, -torch.inf).amax(1)
        negative = distance.masked_fill(same, torch.inf).amin(1)
        counts = others.any(1) & ~same.all(1)
        price = torch.where(counts, positive - negative + self.margin, 0.0).clamp(min=0)
        return price.sum() / counts.sum().clamp(min=1)
