"""Changes to training rows that leave their meaning as it is (augmentation), and mixup; each from a generator given."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor
from torch.nn import functional as F

from marl.core.errors import UserError


class Shift:
    """Moves each picture by up to `pixels` in both directions, zeros moving in: x [B, C, H, W] → the same shape."""

    moves = True  # so it moves a target that is the picture itself, too

    def __init__(self, pixels: Annotated[int, Field(ge=1)] = 1) -> None:
        self.pixels = pixels

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        B, C, H, W = _pictures(x, "Shift")
        padded = F.pad(x, [self.pixels] * 4)
        top, left = torch.randint(0, 2 * self.pixels + 1, (2, B, 1, 1, 1), generator=generator).to(x.device)
        row = (top + torch.arange(H, device=x.device).view(1, 1, H, 1)).expand(B, C, H, padded.shape[-1])
        column = (left + torch.arange(W, device=x.device).view(1, 1, 1, W)).expand(B, C, H, W)
        return padded.gather(2, row).gather(3, column)


class Flip:
    """Mirrors each picture left to right with `probability`: x [B, C, H, W] → the same shape."""

    moves = True

    def __init__(self, probability: Annotated[float, Field(gt=0, le=1)] = 0.5) -> None:
        self.probability = probability

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        B = _pictures(x, "Flip")[0]
        chosen = (torch.rand(B, 1, 1, 1, generator=generator) < self.probability).to(x.device)
        return torch.where(chosen, x.flip(-1), x)


class Erase:
    """Sets a square of `size` pixels of each picture to 0 (cutout, DeVries and Taylor 2017): x [B, C, H, W]."""

    def __init__(self, size: Annotated[int, Field(ge=1)] = 2) -> None:
        self.size = size

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        B, _, H, W = _pictures(x, "Erase")
        top = torch.randint(0, max(1, H - self.size + 1), (B, 1, 1), generator=generator)
        left = torch.randint(0, max(1, W - self.size + 1), (B, 1, 1), generator=generator)
        rows, columns = torch.arange(H).view(1, H, 1) - top, torch.arange(W).view(1, 1, W) - left
        inside = (rows >= 0) & (rows < self.size) & (columns >= 0) & (columns < self.size)
        return x.masked_fill(inside.unsqueeze(1).to(x.device), 0.0)


class Noise:
    """Adds Gaussian noise of standard deviation `std`, in the inputs' own units: x [B, ...], of any kind."""

    def __init__(self, std: Annotated[float, Field(gt=0)] = 0.1) -> None:
        self.std = std

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x + self.std * torch.randn(x.shape, generator=generator).to(x.device)


def _pictures(x: Tensor, name: str) -> tuple[int, int, int, int]:
    if x.dim() != 4:
        raise UserError(f"task.augment: {name} takes pictures [channels, height, width]; these are {list(x.shape[1:])}")
    B, C, H, W = x.shape
    return B, C, H, W


def mixup(batch: TensorDict, alpha: float, seed: int) -> TensorDict:
    """Mixed rows (Zhang et al. 2018): x ← λ x + (1 − λ) x', with λ ~ Beta(α, α) and x' the same rows in another order.

    The targets stay apart: "y" and "y2" with "share" = λ [B], and the loss is λ L(y) + (1 − λ) L(y2), which for the
    cross-entropy is that of the mixed target, and works for every other objective too.
    """
    draw = np.random.default_rng(seed)
    share = float(draw.beta(alpha, alpha))
    other = torch.from_numpy(draw.permutation(len(batch))).to(batch["x"].device)
    x = share * batch["x"] + (1 - share) * batch["x"][other]
    shares = torch.full((len(batch),), share, device=batch["x"].device)
    return TensorDict({"x": x, "y": batch["y"], "y2": batch["y"][other], "share": shares}, batch_size=batch.batch_size)
