"""The order in which an epoch takes the training rows: random, sequential, weighted, or a subset of them."""

from collections.abc import Sequence
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from marl.core.errors import UserError

Sampling = Literal["random", "sequential", "weighted", "subset"]
Weights = Literal["balanced"] | Sequence[Annotated[float, Field(ge=0)]]
Subset = Annotated[float, Field(gt=0, lt=1)] | Sequence[Annotated[int, Field(ge=0)]]


class Order:
    """int64 orders of `rows` training rows, one per epoch, from a generator; built on the samplers of torch.utils.data.

    random       every row once, shuffled
    sequential   every row once, as they lie
    weighted     as many rows as there are, drawn with replacement in proportion to `weights`: one per class, or
                 "balanced", which is 1 / (rows of the class), so that rare classes come as often as common ones
    subset       the rows that `subset` lists, or that share of them (the same ones in every epoch), shuffled

    labels: for `weights`, int64 [rows], or 0 and 1 in float [rows, 1]. `deal`: draws the share of `subset`. Raises
    UserError for what doesn't fit.
    """

    def __init__(
        self,
        rows: int,
        sampler: Sampling = "random",
        weights: Weights | None = None,
        subset: Subset | None = None,
        labels: Tensor | None = None,
        deal: torch.Generator | None = None,
    ) -> None:
        for name, value, wants in (("weights", weights, "weighted"), ("subset", subset, "subset")):
            if (value is None) == (sampler == wants):
                verb = "needs" if sampler == wants else "has no use for"
                raise UserError(f"task.sampler={sampler}: {verb} task.{name}")
        self.rows, self.sampler = rows, sampler
        self.length = rows
        if weights is not None:
            self.weights = _per_row(weights, labels)
        if subset is not None:
            self.subset = _chosen(subset, rows, deal)
            self.length = len(self.subset)

    def draw(self, generator: torch.Generator) -> Tensor:
        """The rows of one epoch: int64 [length]."""
        if self.sampler == "random":  # what RandomSampler draws, without a list in between
            return torch.randperm(self.rows, generator=generator)
        if self.sampler == "sequential":
            chosen = SequentialSampler(range(self.rows))
        elif self.sampler == "weighted":
            weights = cast(Sequence[float], self.weights)  # a tensor, as torch makes of any sequence
            chosen = WeightedRandomSampler(weights, self.rows, True, generator)
        else:
            chosen = SubsetRandomSampler(self.subset, generator)
        return torch.tensor(list(chosen))


def _per_row(weights: Weights, labels: Tensor | None) -> Tensor:
    if labels is not None and labels.shape[1:] == (1,) and ((labels == 0) | (labels == 1)).all():
        labels = labels[:, 0].long()  # the one label of binary data: its 0 and 1 are two classes
    if labels is None or labels.dim() != 1 or labels.is_floating_point():
        raise UserError("task.sampler=weighted: weighs classes, which these data have not")
    labels = labels.cpu()  # where orders are drawn
    counts = labels.bincount()
    if weights == "balanced":
        return (1.0 / counts.clamp(min=1))[labels]
    if len(weights) != len(counts):
        raise UserError(f"task.weights={list(weights)}: {len(weights)} numbers for {len(counts)} classes")
    weight = torch.tensor(weights, dtype=torch.float64)[labels]
    if not 0 < weight.sum() < torch.inf:
        raise UserError(f"task.weights={list(weights)}: must be finite, and above 0 for a class that has rows")
    return weight


def _chosen(subset: Subset, rows: int, deal: torch.Generator | None) -> list[int]:
    if isinstance(subset, float | int):
        order = RandomSampler(range(rows), num_samples=max(1, round(subset * rows)), generator=deal)
        return sorted(order)
    if not subset or max(subset) >= rows:
        raise UserError(f"task.subset={list(subset)[:5]}: must list rows from 0 to {rows - 1} of the training split")
    return list(subset)
