"""Other questions about the handwritten digits: several labels each, which of two is more, which two are the same."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from marl.core.seeding import generator
from marl.data.base import ArrayData, Compared, Count, Fold, Folds, Fraction, Kind, Seed, split
from marl.data.images import load

ATTRIBUTES = {
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "above four": (5, 6, 7, 8, 9),
    "has a loop": (0, 6, 8, 9),
    "square": (0, 1, 4, 9),
}


class DigitAttributes(ArrayData):
    """Several labels of each handwritten digit: x [N, 1, 8, 8], y [N, 5] of 0 and 1, one column per ATTRIBUTES.

    Splits as those of `marl.data.Digits`.
    """

    def __init__(
        self,
        validation: Fraction = 0.15,
        test: Fraction = 0.2,
        seed: Seed = 0,
        folds: Folds = None,
        fold: Fold = 0,
    ) -> None:
        x, digit = load()
        y = torch.stack([torch.isin(digit, torch.tensor(those)) for those in ATTRIBUTES.values()], 1).float()
        rows = split(len(x), {"data.validation": validation, "data.test": test}, seed, digit, folds, fold)
        train, held_out, last = ((x[index], y[index]) for index in rows)
        super().__init__("binary", len(ATTRIBUTES), train, held_out, last)


class _Compared(ArrayData):
    """Rows made of several digits: x [N, 2 or 3, 1, 8, 8]; the network sees each by itself, in_shape (1, 8, 8).

    The digits are dealt into the splits first, so that those of the test split are new; then `samples` rows are drawn
    from each split, a fifth as many for validation and test.
    """

    def _make(
        self, kind: Kind | Compared, out: int, samples: int, validation: float, test: float, seed: int, draw
    ) -> None:  # fmt: skip
        x, digit = load()
        parts = split(len(x), {"data.validation": validation, "data.test": test}, seed, digit)
        minibatches = []
        for name, part in zip(("train", "validation", "test"), parts, strict=True):
            count = samples if name == "train" else max(1, samples // 5)
            index, y = draw(digit[part], count, generator(seed, f"{kind}/{name}"))
            minibatches.append((x[part][index], y))
        train, held_out, last = minibatches
        super().__init__(kind, out, train, held_out, last, normalise=False)
        self.in_shape = tuple(x.shape[1:])
        std, mean = torch.std_mean(self.train["x"], correction=0)  # one channel: one number each
        self.shift, self.scale = mean.view(1, 1, 1), std.view(1, 1, 1)


class DigitPairs(_Compared):
    """Which of two pictures shows the greater digit? x [N, 2, 1, 8, 8], y [N, 1]: 1 if the first, 0 if the second.

    For a ranking loss: the network gives one score per picture. No pair shows the same digit twice.
    """

    def __init__(
        self, samples: Count = 4000, validation: Fraction = 0.15, test: Fraction = 0.2, seed: Seed = 0
    ) -> None:
        def draw(digit: Tensor, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
            first = torch.randint(len(digit), (count,), generator=source)
            second = _where(digit.unsqueeze(0) != digit[first].unsqueeze(1), source)
            return torch.stack([first, second], 1), (digit[first] > digit[second]).float()

        self._make("ranking", 1, samples, validation, test, seed, draw)


class DigitTriplets(_Compared):
    """Anchor, another picture of the same digit, one of another digit: x [N, 3, 1, 8, 8], y [N, 1] all 1.

    For a triplet loss: the network gives an embedding of `size` numbers per picture.
    """

    def __init__(
        self,
        samples: Count = 4000,
        size: Annotated[int, Field(ge=1)] = 8,
        validation: Fraction = 0.15,
        test: Fraction = 0.2,
        seed: Seed = 0,
    ) -> None:
        def draw(digit: Tensor, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
            anchor = torch.randint(len(digit), (count,), generator=source)
            same = digit.unsqueeze(0) == digit[anchor].unsqueeze(1)
            other = _where(~same, source)
            same[torch.arange(count), anchor] = False
            return torch.stack([anchor, _where(same, source), other], 1), torch.ones(count)

        self._make("triplets", size, samples, validation, test, seed, draw)


def _where(allowed: Tensor, source: torch.Generator) -> Tensor:
    """One column per row of bool [N, M] at random among those that are True: int64 [N]."""
    return torch.multinomial(allowed.float(), 1, generator=source).squeeze(1)
