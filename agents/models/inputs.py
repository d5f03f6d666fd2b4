"""What a network sees of observations: scaled or normalised, with the agent's id appended, or as they are.

Shapes: A agents in the group, F features, `...` any leading dimensions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from agents.models.normalization import ObservationNorm
from agents.models.part_normalization import PartNorm
from agents.models.parts import IDS, told
from envs.observation_parts import WHOLE
from envs.spec import ObservationPart
from marl.networks import Part


class Inputs(nn.Module):
    """Observations [..., A, F] to a network's inputs [..., A, size].

    Args:
        features: F.
        n_agents: A.
        normalize: running normalisation of every feature, its statistics common to the agents; pictures are left out.
        limit: of the normalised features, in standard deviations.
        ids: append agent i's one-hot vector e_i, so that a network that all share can tell them apart (Yu et al. 2022,
            section 5.2; Gupta et al. 2017). size = F + A then, else F.
        parts: of the observation; what has a scale is divided by it. () = one vector.

    Attributes:
        parts: of what the network reads, the ids being one of them.
        unscaled: whether no part of the observation has a scale.
    """

    def __init__(
        self,
        features: int,
        n_agents: int,
        normalize: bool = False,
        limit: float = 10.0,
        ids: bool = False,
        parts: Sequence[ObservationPart] = (),
    ) -> None:
        super().__init__()
        self.size = features + (n_agents if ids else 0)
        shaped = any(part.kind != "vector" for part in parts)
        self.norm = None
        if normalize:
            self.norm = PartNorm(parts, limit) if shaped else ObservationNorm(features, limit)
        self.unscaled = all(part.scale == 1 for part in parts)
        scaled = not normalize and not self.unscaled
        units = torch.cat([torch.full((part.size,), part.scale) for part in parts]) if scaled else None
        self.register_buffer("units", units, persistent=False)
        self.register_buffer("ids", torch.eye(n_agents) if ids else None, persistent=False)
        self.plain = not (normalize or ids or scaled)
        network_parts = told(parts) or (Part(WHOLE, (features,)),)
        self.parts = (*network_parts, Part(IDS, (n_agents,))) if ids else network_parts

    def forward(self, observation: Tensor) -> Tensor:
        """float32 [..., A, F] -> [..., A, size]."""
        if self.plain:
            return observation
        x = observation if self.norm is None else self.norm(observation)
        if self.units is not None:
            x = x / self.units
        return x if self.ids is None else torch.cat([x, self.ids.expand(*x.shape[:-1], -1)], -1)

    def learn(self, observation: Tensor, counts: Tensor | None = None) -> None:
        """Take observations float32 [..., F] into the statistics, where there are any.

        counts: bool [...], which of them count; None = all.
        """
        if self.norm is not None:
            self.norm.update(observation, counts)
