"""Target networks: copies of networks that follow them slowly (Polyak averaging) or from time to time."""

from copy import deepcopy

import torch
from torch import nn

from marl.optim.fused_lerp import Lerp


class TargetNetwork(nn.Module):
    """A copy of a network whose weights follow it and get no gradient.

    Args:
        source: whose copy it is.
        tau: share of the source taken at each update: 1 = all of it.
        every: updates between two of the copy's.
    """

    def __init__(self, source: nn.Module, tau: float = 0.005, every: int = 1) -> None:
        super().__init__()
        self.network = deepcopy(source).requires_grad_(False)
        self.tau, self.every = tau, every
        self._pairs = [source]  # a list, so that the source's weights are not this module's too
        self._following: tuple[list[torch.Tensor], ...] | None = None  # found once: a walk takes longer than the sum
        self._lerp: Lerp | None = None

    def forward(self, *inputs, **named):
        return self.network(*inputs, **named)

    def is_due(self, update: int) -> bool:
        """Whether the copy follows the `update`-th update of the source."""
        return update % self.every == 0

    @torch.no_grad()
    def follow(self, update: int) -> None:
        """The `update`-th update of the source was made, the first being 1.

        theta' <- theta' + tau (theta - theta') (Lillicrap et al. 2016, algorithm 1); buffers are taken over whole.
        """
        if not self.is_due(update):
            return
        if self._following is None:
            both = self.network, self._pairs[0]
            self._following = *[list(m.parameters()) for m in both], *[list(m.buffers()) for m in both]
            self._lerp = Lerp(*self._following[:2])
        targets, sources, buffers, source_buffers = self._following
        if targets and self.tau == 1.0:
            torch._foreach_copy_(targets, sources)
        elif targets:
            self._lerp(self.tau)
        if targets and buffers:
            torch._foreach_copy_(buffers, source_buffers)
