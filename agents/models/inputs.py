"""What a network sees of observations: normalised, with the agent's id appended, or as they are.

Shapes: A agents in the group, F features, `...` any leading dimensions.
"""

import torch
from torch import Tensor, nn

from agents.models.normalization import ObservationNorm


class Inputs(nn.Module):
    """Observations [..., A, F] to a network's inputs [..., A, size].

    Args:
        features: F.
        n_agents: A.
        normalize: running normalisation of every feature, its statistics common to the agents.
        limit: of the normalised features, in standard deviations.
        ids: append agent i's one-hot vector e_i, so that a network that all share can tell them apart (Yu et al. 2022,
            section 5.2; Gupta et al. 2017). size = F + A then, else F.
    """

    def __init__(
        self, features: int, n_agents: int, normalize: bool = False, limit: float = 10.0, ids: bool = False
    ) -> None:
        super().__init__()
        self.size = features + (n_agents if ids else 0)
        self.norm = ObservationNorm(features, limit) if normalize else None
        self.register_buffer("ids", torch.eye(n_agents) if ids else None, persistent=False)
        self.plain = not (normalize or ids)

    def forward(self, observation: Tensor) -> Tensor:
        """float32 [..., A, F] -> [..., A, size]."""
        if self.plain:
            return observation
        x = observation if self.norm is None else self.norm(observation)
        return x if self.ids is None else torch.cat([x, self.ids.expand(*x.shape[:-1], -1)], -1)

    def learn(self, observation: Tensor, counts: Tensor | None = None) -> None:
        """Take observations float32 [..., F] into the statistics, where there are any.

        counts: bool [...], which of them count; None = all.
        """
        if self.norm is not None:
            self.norm.update(observation, counts)
