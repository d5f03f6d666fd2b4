"""What a supervised data set is: three splits of rows, what their targets mean, and how inputs are scaled."""

from typing import Annotated, Literal, get_args

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor

from marl.core.errors import UserError
from marl.core.seeding import generator
from marl.data.table import check_finite

Kind = Literal["classification", "binary", "regression"]
Compared = Literal["ranking", "triplets"]  # rows of two or three inputs; see marl.data.digit_variants
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Folds = Annotated[int, Field(ge=2)] | None
Fold = Annotated[int, Field(ge=0)]


class ArrayData:
    """A data set that fits in memory. Subclass it, or give any object these attributes.

    Attributes:
        train, validation, test: TensorDict [N] of "x" float32 [N, *in_shape] and "y"; `test` may be None. Models
            learn from `train`, are chosen by `validation` and judged by `test`.
        kind: what "y" is. "classification": int64 [N], the class; "binary": float32 [N, out_features] of 0 and
            1; "regression": float32 [N, out_features]; "ranking", "triplets": float32 [N, 1], see
            `marl.data.digit_variants`.
        in_shape: shape of one input.
        out_features: size of the model's output: classes, labels or target dimensions.
        shift, scale: float32, broadcast over one input; the model sees (x − shift) / scale.
        target_shift, target_scale: float32 [out_features], of a regression; may be missing. The model learns
            (y − target_shift) / target_scale, and what it says is put back into the targets' units.

    `normalise` takes mean and standard deviation of the training split (never of the others): per channel of
    images (C, H, W), else per feature; a constant feature keeps scale 1. `standardize_targets` does the same to the
    targets of a regression, where `normalise` is on. Raises UserError where the number of
    inputs and targets differ, a split is empty, or a number is not finite.
    """

    source = "data"  # the file, in messages on what it holds

    def __init__(
        self,
        kind: Kind | Compared,
        out_features: int,
        train: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor] | None = None,
        normalise: bool = True,
        standardize_targets: bool = True,
    ) -> None:
        self.kind = kind
        self.out_features = out_features
        self.in_shape = tuple(train[0].shape[1:])
        self.train = self._rows("train", *train)
        self.validation = self._rows("validation", *validation)
        self.test = None if test is None else self._rows("test", *test)
        self.shift, self.scale = _statistics(self.train["x"]) if normalise else (torch.zeros(1), torch.ones(1))
        if kind == "regression" and normalise and standardize_targets:
            self.target_shift, self.target_scale = _statistics(self.train["y"])

    def _rows(self, name: str, x: Tensor, y: Tensor) -> TensorDict:
        if not 0 < len(x) == len(y):
            raise UserError(f"{self.source}: {len(x)} inputs and {len(y)} targets in {name}; must be equal and above 0")
        y = y.long() if self.kind == "classification" else y.float().reshape(len(y), -1)
        if y.dim() == 2 and y.shape[1] != (1 if self.kind in get_args(Compared) else self.out_features):
            raise UserError(f"{self.source}: {y.shape[1]} targets per row in {name}; out_features={self.out_features}")
        return finite(f"{name} of {self.source}", TensorDict({"x": x.float(), "y": y}, batch_size=[len(x)]))


def _statistics(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of rows [N, ...], broadcast over one of them."""
    over = (0, 2, 3) if values.dim() == 4 else tuple(range(values.dim() - 1))
    std, mean = torch.std_mean(values, dim=over, correction=0, keepdim=True)
    return mean[0], torch.where(std > 1e-8, std, 1.0)[0]


def finite(name: str, rows: TensorDict) -> TensorDict:
    """`rows` [N] of the split `name` as they are. Raises UserError, naming the element, where one is not finite."""
    for key, values in rows.items():
        check_finite(values, lambda at, key=key: f"{key}{at} in {name}")
    return rows


def split(
    rows: int,
    fractions: dict[str, float],
    seed: int,
    labels: Tensor | None = None,
    folds: int | None = None,
    fold: int = 0,
) -> list[Tensor]:
    """Rows dealt at random: [the rest, one per fraction], each int64 indices, disjoint and complete.

    With `labels` (int [rows]) every split gets each class in proportion. With `folds` k, the first fraction gives way
    to k-fold cross-validation: what the other fractions leave is dealt into k equal parts, of which number `fold` is
    held out in its place. Raises UserError where the `fractions` (by the name of their key) leave nothing for
    training, or for a fold that there isn't.
    """
    if folds is not None:
        return _folded(rows, fractions, seed, labels, folds, fold)
    if fold:
        raise UserError(f"data.fold={fold}: needs data.folds, into how many parts the rows are dealt")
    if sum(fractions.values()) >= 1:
        named = " + ".join(f"{name}={value}" for name, value in fractions.items())
        raise UserError(f"{named}: leaves no rows for training; must sum to less than 1")
    order = torch.randperm(rows, generator=generator(seed, "split"))
    if labels is not None:  # sorted by class, random within: dealing evenly along this order is proportional
        order = order[labels[order].argsort(stable=True)]
    taken, left = [], 1.0
    for fraction in fractions.values():
        ticks = (torch.arange(len(order) + 1, dtype=torch.float64) * (fraction / left) + 1e-9).floor()
        chosen = ticks[1:] > ticks[:-1]
        taken.append(order[chosen])
        order, left = order[~chosen], left - fraction
    return [order, *taken]


def _folded(
    rows: int, fractions: dict[str, float], seed: int, labels: Tensor | None, k: int, fold: int
) -> list[Tensor]:
    if not fold < k <= rows:
        raise UserError(f"data.fold={fold}: must be below data.folds={k}, which is at most {rows}, the rows")
    others = dict(list(fractions.items())[1:])
    rest, *partitions = split(rows, others, seed, labels) if others else [torch.arange(rows)]
    parts = split(len(rest), {str(i): 1 / k for i in range(1, k)}, seed, None if labels is None else labels[rest])
    return [rest[torch.cat([part for i, part in enumerate(parts) if i != fold])], rest[parts[fold]], *partitions]
