"""Critics of actions: the value of what the agents do, from what this kind of critic may see.

Shapes: A agents in the group, F features of an observation, D action dimensions, S features of the global state,
N critics, K choices, `...` leading dimensions.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from agents.models.architecture import Architecture
from agents.models.critic import Critic
from envs.spec import GroupSpec, ObservationPart
from marl.core.errors import UserError


class QCritic(nn.Module):
    """N action-value functions of one group of agents, built and trained apart.

    kind          agent i's value of actions reads                        algorithm
    local         its own observation and action [F + D]                  IDDPG, ISAC
    concat        all observations and actions of the group [A (F + D)]   MADDPG, MASAC
    state         the global state and all actions [S + A D]
    agent_state   the same and its own observation [S + A D + F]

    Each is an `agents.models.critic.Critic` whose observations or state hold the actions too, so sharing, ids and
    networks that read the team work as they do there.

    Args:
        spec, network, architecture, state_size: as for `Critic`.
        copies: N; with 2 the smaller value is taken for targets (Fujimoto et al. 2018).

    Raises:
        UserError: as `Critic`, or settings that need values of states.
    """

    def __init__(
        self,
        spec: GroupSpec,
        network: Callable[..., nn.Module],
        architecture: Architecture,
        state_size: int | None = None,
        copies: int = 1,
    ) -> None:
        super().__init__()
        if architecture.value_norm != "none" or architecture.prune_state:
            key = "prune_state" if architecture.prune_state else "value_norm"
            raise UserError(f"algo.{key}: is of critics of states (algo=mappo, ippo), not of critics of actions")
        self.kind, self.n_agents = architecture.critic, spec.n_agents
        self.uses_state = self.kind in ("state", "agent_state")
        D = spec.action.size
        if self.uses_state:
            state_size = None if state_size is None else state_size + spec.n_agents * D
        else:
            parts = (*spec.parts, ObservationPart("action", (D,))) if spec.parts else ()
            spec = replace(spec, observation_size=spec.observation_size + D, parts=parts)
        self.critics = nn.ModuleList(Critic(spec, network, architecture, state_size) for _ in range(copies))

    def forward(self, observation: Tensor, action: Tensor, state: Tensor | None = None) -> Tensor:
        """Values of actions.

        Args:
            observation: float32 [..., A, F].
            action: float32 [..., A, D], in units of half the range, [-1, 1].
            state: float32 [..., S]; read by the kinds state and agent_state only.

        Returns:
            float32 [N, ..., A].
        """
        if self.uses_state:
            state = torch.cat([state, action.flatten(-2)], -1)
        else:
            observation = torch.cat([observation, action], -1)
        return _stacked([critic(observation, state) for critic in self.critics])


class ChoiceCritic(nn.Module):
    """N values of every choice of a discrete action, agent by agent: float32 [N, ..., A, K].

    kind: what it sees is as for `QCritic`, without actions: a choice's value is an output.
    """

    def __init__(
        self,
        spec: GroupSpec,
        network: Callable[..., nn.Module],
        architecture: Architecture,
        state_size: int | None = None,
        copies: int = 1,
    ) -> None:
        super().__init__()
        self.kind, self.n_agents = architecture.critic, spec.n_agents
        self.uses_state = self.kind in ("state", "agent_state")
        (choices,) = spec.action.nvec
        self.critics = nn.ModuleList(
            Critic(spec, network, architecture, state_size, choices) for _ in range(copies)
        )

    def forward(self, observation: Tensor, state: Tensor | None = None) -> Tensor:
        """float32 [..., A, F] and, for the kinds that read it, [..., S] -> [N, ..., A, K]."""
        return _stacked([critic(observation, state) for critic in self.critics])


def _stacked(values: list[Tensor]) -> Tensor:
    return torch.stack(values) if len(values) > 1 else values[0].unsqueeze(0)
