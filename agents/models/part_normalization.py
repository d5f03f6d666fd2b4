"""Running normalisation of observations whose parts are not all vectors.

Shapes: F features, N things of a set, `...` any leading dimensions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.models.normalization import ObservationNorm, RunningMoments
from envs.spec import ObservationPart


class PartNorm(nn.Module):
    """As `ObservationNorm`, part by part: vectors feature by feature, and sets feature by feature over all N things.

    So every thing of a set is scaled the same way, wherever it stands. Pictures are divided by their `scale`, and
    nothing of them is counted or clipped.

    Args:
        parts: of the observation, in their order.
        limit: of vectors and sets, in standard deviations.
    """

    def __init__(self, parts: Sequence[ObservationPart], limit: float = 10.0) -> None:
        super().__init__()
        self.parts, self.limit = tuple(parts), limit
        self.sizes = [part.size for part in parts]
        widths = [part.shape[-1] for part in parts if part.kind != "picture"]
        self.moments = nn.ModuleList(RunningMoments(width) for width in widths)
        # What forward needs, float32 and ready: x * scale + shift, within the limits.
        pixels = [torch.full((part.size,), part.kind == "picture") for part in parts]
        self.register_buffer("scale", torch.ones(sum(self.sizes)))
        self.register_buffer("shift", torch.zeros(sum(self.sizes)))
        limits = torch.full((sum(self.sizes),), float(limit)).masked_fill(torch.cat(pixels), torch.inf)
        self.register_buffer("limits", limits, persistent=False)
        self._prepare()

    @torch.no_grad()
    def update(self, x: Tensor, counts: Tensor | None = None) -> None:
        """Merge float32 [..., F]. counts: bool [...], which rows are seen; None = all."""
        moments = iter(self.moments)
        for part, piece in zip(self.parts, x.split(self.sizes, -1), strict=True):
            if part.kind != "picture":
                things = piece.unflatten(-1, (-1, part.shape[-1]))
                next(moments).update(things, None if counts is None else counts.unsqueeze(-1).expand(things.shape[:-1]))
        self._prepare()

    def _prepare(self) -> None:
        moments = iter(self.moments)
        scales, shifts = [], []
        for part in self.parts:
            if part.kind == "picture":
                scale = torch.full((part.size,), 1 / part.scale, device=self.scale.device)
                shift = torch.zeros_like(scale)
            else:
                seen = next(moments)
                scale = torch.where(seen.count > 0, (seen.var + ObservationNorm.EPS).rsqrt(), 1.0)
                things = part.size // part.shape[-1]
                scale, shift = scale.repeat(things), (-seen.mean * scale).repeat(things)
            scales.append(scale.float())
            shifts.append(shift.float())
        self.scale.copy_(torch.cat(scales))
        self.shift.copy_(torch.cat(shifts))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., F] -> [..., F]."""
        return torch.addcmul(self.shift, x, self.scale).clamp(-self.limits, self.limits)
