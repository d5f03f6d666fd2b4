"""An off-policy algorithm of one's own: randomised ensembled double Q-learning (REDQ, Chen et al. 2021) for teams."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from agents.algorithms.off_policy.sac import SAC, SACLoss
from marl.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class REDQ(SAC):
    """SAC's settings, with more critics, of which each minibatch's targets ask a few.

    Args:
        ensemble: N, critics of each group.
        subset: M of them, drawn again for each minibatch, give the targets: the smallest of their values.
    """

    ensemble: Annotated[int, Field(ge=1)] = 5
    subset: Annotated[int, Field(ge=1)] = 2

    def __post_init__(self):
        super().__post_init__()
        if self.subset > self.ensemble:
            raise UserError(f"algo.subset={self.subset}: at most algo.ensemble={self.ensemble}")

    @property
    def n_critics(self):
        return self.ensemble

    @property
    def loss_class(self):
        return REDQLoss


class REDQLoss(SACLoss):
    """SAC's loss; targets take the minimum over a random subset of the critics, actors the mean over all."""

    def in_targets(self, values, own):
        chosen = torch.rand(len(values), device=values.device).topk(own.subset).indices
        return values[chosen].amin(0)  # algorithm 1, line 9

    def for_actors(self, values, own):
        return values.mean(0)  # line 13

    def capture_key(self):
        """All that decides what is computed, so that it may be recorded once and replayed."""
        return super().capture_key()
