"""Networks for a group of agents: one for all, or one for each."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from marl.networks.common import Shape, shape_tuple


class PerAgent(nn.Module):
    """`factory(in_shape, out_features)` once for the group (`shared`), or once per agent with its own initial weights.

    forward: float [..., A, *in_shape] → float [..., A, out_features].
    `networks` holds the 1 or A networks, so that both kinds of checkpoint are read alike.
    """

    def __init__(
        self,
        factory: Callable[..., nn.Module],
        n_agents: int,
        in_shape: Shape,
        out_features: int,
        shared: bool,
    ) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.shared = shared
        self._agent_dim = -1 - len(shape_tuple(in_shape))
        copies = 1 if shared else n_agents
        self.networks = nn.ModuleList(factory(in_shape, out_features) for _ in range(copies))

    def forward(self, x: Tensor) -> Tensor:
        if self.shared:
            return self.networks[0](x)
        inputs = x.unbind(self._agent_dim)
        return torch.stack([network(a) for network, a in zip(self.networks, inputs, strict=True)], dim=-2)
