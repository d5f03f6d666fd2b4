"""Critics of actions: the value of what the agents do, from what this kind of critic may see.

Shapes: A agents in the group, F features of an observation, D action dimensions, S features of the global state,
N critics, K choices, L steps of a sequence, `...` leading dimensions.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from agents.models.architecture import Architecture
from agents.models.critic import Critic
from envs.spec import GroupSpec, ObservationPart
from marl.core.errors import UserError


class ActionCritics(nn.Module):
    """N critics of one group of agents, built and trained apart; what both kinds below have in common.

    Each is an `agents.models.critic.Critic`, so sharing, ids and networks that read the team work as they do there.

    Args:
        spec, network, architecture, state_size: as for `Critic`.
        copies: N; with 2 the smaller value is taken for targets (Fujimoto et al. 2018).

    Attributes:
        memory_shape: what all of them remember, as `Critic.memory_shape` with N times its numbers; None: nothing.
        per_agent: as `Critic.per_agent`.

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
        self.critics = nn.ModuleList(self.new_critic(spec, network, architecture, state_size) for _ in range(copies))
        shape, self.per_agent = self.critics[0].memory_shape, self.critics[0].per_agent
        self.memory_shape = None if shape is None else (*shape[:-1], shape[-1] * copies)

    @abstractmethod
    def new_critic(
        self, spec: GroupSpec, network: Callable[..., nn.Module], architecture: Architecture, state_size: int | None
    ) -> Critic:
        """One of the critics."""

    def unroll(
        self,
        observation: Tensor,
        action: Tensor | None,
        state: Tensor | None,
        memory: Tensor,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Values along sequences, [N, L, ..., A(, K)], and the memory after each step, [L, ..., *memory_shape].

        observation, action, state: [L, ...], as `forward`'s. memory, start: as for `Critic.unroll`.
        """
        seen, parts = self._seen(observation, action, state), memory.chunk(len(self.critics), -1)
        outputs = [critic.unroll(*seen, part, start) for critic, part in zip(self.critics, parts, strict=True)]
        values, memories = zip(*outputs, strict=True)
        return torch.stack(values), torch.cat(memories, -1)

    def _seen(self, observation: Tensor, action: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What each critic reads for observation and state."""
        return observation, state


class QCritic(ActionCritics):
    """N values of the actions that a group takes.

    kind          agent i's value of actions reads                        algorithm
    local         its own observation and action [F + D]                  IDDPG, ISAC
    concat        all observations and actions of the group [A (F + D)]   MADDPG, MASAC
    state         the global state and all actions [S + A D]
    agent_state   the same and its own observation [S + A D + F]

    Observations or the state hold the actions too.
    """

    def new_critic(
        self, spec: GroupSpec, network: Callable[..., nn.Module], architecture: Architecture, state_size: int | None
    ) -> Critic:
        D = spec.action.size
        if self.uses_state:
            state_size = None if state_size is None else state_size + spec.n_agents * D
        else:
            parts = (*spec.parts, ObservationPart("action", (D,))) if spec.parts else ()
            spec = replace(spec, observation_size=spec.observation_size + D, parts=parts)
        return Critic(spec, network, architecture, state_size)

    def forward(self, observation: Tensor, action: Tensor, state: Tensor | None = None) -> Tensor:
        """Values of actions.

        Args:
            observation: float32 [..., A, F].
            action: float32 [..., A, D], in units of half the range, [-1, 1].
            state: float32 [..., S]; read by the kinds state and agent_state only.

        Returns:
            float32 [N, ..., A].
        """
        seen = self._seen(observation, action, state)
        return _stacked([critic(*seen) for critic in self.critics])

    def _seen(self, observation: Tensor, action: Tensor | None, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.uses_state:
            return observation, torch.cat([state, action.flatten(-2)], -1)
        return torch.cat([observation, action], -1), state


class ChoiceCritic(ActionCritics):
    """N values of every choice of a discrete action, agent by agent: float32 [N, ..., A, K].

    kind: what it sees is as for `QCritic`, without actions: a choice's value is an output.
    """

    def new_critic(
        self, spec: GroupSpec, network: Callable[..., nn.Module], architecture: Architecture, state_size: int | None
    ) -> Critic:
        (choices,) = spec.action.nvec
        return Critic(spec, network, architecture, state_size, choices)

    def forward(self, observation: Tensor, state: Tensor | None = None) -> Tensor:
        """float32 [..., A, F] and, for the kinds that read it, [..., S] -> [N, ..., A, K]."""
        return _stacked([critic(observation, state) for critic in self.critics])


def _stacked(values: list[Tensor]) -> Tensor:
    return torch.stack(values) if len(values) > 1 else values[0].unsqueeze(0)
