"""Made data sets whose truth is known, so that what a model learned can be checked."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from marl.core.errors import UserError
from marl.core.seeding import generator
from marl.data.base import ArrayData, Count, Fraction, Seed, split

NonNegative = Annotated[float, Field(ge=0)]


class Threshold(ArrayData):
    """Is the number above `threshold`? x [N, 1], y [N, 1]: 1 where it is, else 0.

    Training: the whole numbers from `low` to `high`. Validation: `unseen` fractional numbers from the same range.
    Test: `unseen` fractional numbers from three times that range, so mostly outside what was seen. Numbers between
    the threshold and the next whole one can't be learned from whole numbers: they bound the accuracy.
    """

    def __init__(
        self, threshold: float = 8.0, low: int = -2, high: int = 20, unseen: Count = 500, seed: Seed = 0
    ) -> None:
        if not low <= threshold < high:
            raise UserError(f"data.threshold={threshold}: must be at least data.low={low} and below data.high={high}")
        span = high - low
        stream = generator(seed, "threshold")
        whole = torch.arange(low, high + 1, dtype=torch.float32)
        inside = low + span * torch.rand(unseen, generator=stream)
        beyond = low - span + 3 * span * torch.rand(unseen, generator=stream)
        train, held_out, last = ((x.unsqueeze(1), (x > threshold).float()) for x in (whole, inside, beyond))
        super().__init__("binary", 1, train, held_out, last)


class Sine(ArrayData):
    """y = sin(x) + noise with x uniform in [−π, π]: x [N, 1], y [N, 1]; `noise` is its standard deviation.

    The test split is free of noise: its mean squared error is the distance to the true curve, while that of the
    validation split can't fall below noise².
    """

    def __init__(
        self, samples: Count = 600, noise: NonNegative = 0.1, validation: Fraction = 0.2, seed: Seed = 0
    ) -> None:
        stream = generator(seed, "sine")
        x = torch.pi * (2 * torch.rand(samples, 1, generator=stream) - 1)
        y = x.sin() + noise * torch.randn(samples, 1, generator=stream)
        train, held_out = split(samples, {"data.validation": validation}, seed)
        grid = torch.linspace(-torch.pi, torch.pi, 200).unsqueeze(1)
        super().__init__(
            *("regression", 1, (x[train], y[train]), (x[held_out], y[held_out]), (grid, grid.sin())),
            standardize_targets=False,  # they lie between -1 and 1 as they are
        )


class LinearRegression(ArrayData):
    """y = weight · x + bias + noise, x standard normal [N, features], y [N, 1].

    `weight` [features] and `bias` [] are the truth, drawn from `seed`; `noise` is a standard deviation. Inputs are
    not scaled, so the model's weights are the ones to compare.
    """

    def __init__(
        self,
        samples: Count = 1000,
        features: Count = 8,
        noise: NonNegative = 0.1,
        validation: Fraction = 0.15,
        test: Fraction = 0.15,
        seed: Seed = 0,
    ) -> None:
        x, self.weight, self.bias, stream = _linear_truth(samples, features, seed, "linear regression")
        y = x @ self.weight + self.bias + noise * torch.randn(samples, generator=stream)
        rows = split(samples, {"data.validation": validation, "data.test": test}, seed)
        super().__init__("regression", 1, *((x[index], y[index]) for index in rows), normalise=False)


class LogisticRegression(ArrayData):
    """y is 1 with probability σ(weight · x + bias), x standard normal [N, features], y [N, 1].

    `weight` [features] and `bias` [] are the truth, drawn from `seed`; inputs are not scaled. `best_accuracy` is
    what the true weights score on the test split: labels are drawn by chance, so it is below 1.
    """

    def __init__(
        self,
        samples: Count = 2000,
        features: Count = 4,
        validation: Fraction = 0.15,
        test: Fraction = 0.2,
        seed: Seed = 0,
    ) -> None:
        x, self.weight, self.bias, stream = _linear_truth(samples, features, seed, "logistic regression")
        logit = x @ self.weight + self.bias
        y = (torch.rand(samples, generator=stream) < logit.sigmoid()).float()
        rows = split(samples, {"data.validation": validation, "data.test": test}, seed, labels=y)
        self.best_accuracy = ((logit > 0) == (y > 0))[rows[-1]].float().mean().item()
        super().__init__("binary", 1, *((x[index], y[index]) for index in rows), normalise=False)


def _linear_truth(
    samples: int, features: int, seed: int, purpose: str
) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    stream = generator(seed, purpose)
    weight = 2 * torch.randn(features, generator=stream)
    bias = torch.randn((), generator=stream)
    return torch.randn(samples, features, generator=stream), weight, bias, stream
