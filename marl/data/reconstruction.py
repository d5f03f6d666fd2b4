"""A data set whose inputs are their own targets, for auto-encoders."""

from typing import Annotated

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor

from marl.core.errors import UserError
from marl.core.seeding import generator
from marl.data.base import ArrayData, Seed


class Reconstruction(ArrayData):
    """The splits of `data` without its targets: x [N, *in_shape] scaled into [0, 1], y [N, prod(in_shape)] the same.

    The least and greatest number of the training split become 0 and 1; what lies beyond in other splits is clipped.
    `noise` is the deviation of normal noise on the training split's x; y stays clean (Vincent et al. 2008).
    Augmentations that move a picture move y too; those that only disturb it leave y clean. Raises UserError where the
    training split is one number throughout.
    """

    own_target = True

    def __init__(self, data: ArrayData, noise: Annotated[float, Field(ge=0)] = 0.0, seed: Seed = 0) -> None:
        low, high = data.train["x"].min(), data.train["x"].max()
        if low == high:
            raise UserError("data: there is nothing to reconstruct, every input is the same number")

        def pair(rows: TensorDict) -> tuple[Tensor, Tensor]:
            x = ((rows["x"] - low) / (high - low)).clamp(0, 1)
            return x, x.flatten(1)

        x, y = pair(data.train)
        if noise:
            x = x + noise * torch.randn(x.shape, generator=generator(seed, "reconstruction"))
        test = None if data.test is None else pair(data.test)
        super().__init__("regression", y.shape[1], (x, y), pair(data.validation), test, normalise=False)
