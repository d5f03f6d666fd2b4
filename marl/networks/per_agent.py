"""Networks for a group of agents: one for all, or one for each."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from marl.networks.common import Shape, shape_tuple
from marl.networks.team import refuse_separate


class PerAgent(nn.Module):
    """`factory(in_shape, out_features)` once for the group (`shared`), or once per agent with its own initial weights.

    forward: float [..., A, *in_shape] → float [..., A, out_features].
    unroll: the same of networks with a memory (`memory_size` > 0, see `marl.networks.recurrent`).
    `networks` holds the 1 or A networks, so that both kinds of checkpoint are read identically. Shared, it may be a
    network that reads the whole team (`marl.networks.team`); UserError where there would be one of those per agent.
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
        self.memory_size: int = getattr(self.networks[0], "memory_size", 0)

    def forward(self, x: Tensor, only: int | None = None) -> Tensor:
        """All agents' outputs; with `only` those of one agent with a network of its own, zeros for the others."""
        if self.shared:
            return self.networks[0](x)
        inputs = x.unbind(self._agent_dim)
        if only is not None:
            output = self.networks[only](inputs[only])
            nothing = torch.zeros_like(output)
            return torch.stack([output if i == only else nothing for i in range(self.n_agents)], dim=-2)
        return torch.stack([network(a) for network, a in zip(self.networks, inputs, strict=True)], dim=-2)

    def unroll(
        self, x: Tensor, memory: Tensor, start: Tensor | None = None, only: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Along sequences: x [L, ..., A, F], memory [..., A, M], start bool [L, ...], or each agent's own [L, ..., A].

        Returns outputs [L, ..., A, out_features] and the memory after each step [L, ..., A, M]; with `only`, as in
        `forward`, zeros for the others.
        """
        if self.shared:
            return self.networks[0](x, memory, start)
        starts: Sequence[Tensor | None] = [start] * self.n_agents
        if start is not None and start.dim() == x.dim() - 1:
            starts = start.unbind(-1)
        agents = zip(self.networks, x.unbind(-2), memory.unbind(-2), starts, strict=True)
        if only is not None:
            network, agent_x, agent_memory, agent_start = list(agents)[only]
            out, after = network(agent_x, agent_memory, agent_start)
            none = torch.zeros_like(out), torch.zeros_like(after)
            results = [(out, after) if i == only else none for i in range(self.n_agents)]
        else:
            results = [network(*agent) for network, *agent in agents]
        outputs, memories = zip(*results, strict=True)
        return torch.stack(outputs, -2), torch.stack(memories, -2)
