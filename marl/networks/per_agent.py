"""Networks for a group of agents: one for all, or one for each."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from marl.networks.common import Shape, shape_tuple
from marl.networks.team import refuse_separate


class PerAgent(nn.Module):
    """`factory(in_shape, out_features)` once for the group (`shared`), or once per agent with its own initial weights.

    forward: float [..., A, *in_shape] → float [..., A, out_features].
    `networks` holds the 1 or A networks, so that both kinds of checkpoint are read alike. Shared, it may be a network
    that reads the whole team (`marl.networks.team`); UserError where there would be one of those per agent.
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
        if not shared:
            refuse_separate(factory)
        self.networks = nn.ModuleList(factory(in_shape, out_features) for _ in range(copies))

    def forward(self, x: Tensor, only: int | None = None) -> Tensor:
        """All agents' outputs; with `only` those of one agent with a network of its own, zeros for the others."""
        if self.shared:
            return self.networks[0](x)
        inputs = x.unbind(self._agent_dim)
        if only is not None:
            own = self.networks[only](inputs[only])
            nothing = torch.zeros_like(own)
            return torch.stack([own if i == only else nothing for i in range(self.n_agents)], dim=-2)
        return torch.stack([network(a) for network, a in zip(self.networks, inputs, strict=True)], dim=-2)
