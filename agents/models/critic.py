"""The critic: one value per agent, from what this kind of critic may see (all that IPPO and MAPPO differ in).

Shapes: A agents in the group, F features of an observation, S features of the global state, L steps of
a sequence, M numbers of memory, `...` leading dimensions.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from agents.models.architecture import Architecture
from agents.models.inputs import Inputs
from agents.models.normalization import ValueNorm, rescale
from agents.models.parts import STATE, keep, observation_parts
from envs.spec import GroupSpec
from marl.core.errors import UserError
from marl.networks import Part, PerAgent, reads_team, with_parts


class Critic(nn.Module):
    """Value function of one group of agents.

    kind          input of agent i's value                       algorithm
    local         its own observation [F]                        IPPO
    concat        all observations of the group [A * F]          MAPPO
    state         the environment's global state [S]             MAPPO
    agent_state   global state and own observation [S + F]       MAPPO, agent-specific state (Yu et al. 2022)

    For concat and state every agent's input is the same, so a shared critic is one call of one network with A
    outputs, one value per agent: right for individual rewards too, and A times cheaper than A calls.

    A shared network that reads the whole team (`marl.networks.team`) takes the observations as they are, [A, F], of
    the kind agent_state [A, F + S]. Reordering the agents reorders their values. There may be any number of agents.

    Args:
        spec: the group.
        network: factory `network(in_shape, out_features) -> nn.Module`.
        architecture: its `critic` is the kind above. Ids go to a shared network of the kinds local and agent_state, the
            others tell the agents apart by their outputs. Pruned is what `GroupSpec.in_state` names.
        state_size: S, or None where the environment offers no global state.
        choices: K, values per agent instead of one: those of its choices, [..., A, K].

    Attributes:
        memory_shape: what the network remembers from step to step, (M,) or, one row per agent, (A, M); None where it
            remembers nothing. A network with a memory is asked through `unroll`.
        per_agent: whether memories are each agent's own, and its episodes end on their own (`GroupSpec.ends`).

    Raises:
        UserError: the kind needs a global state and the environment offers none. PopArt needs an output layer. A
            network that reads the team was given for the kind local, which must not, or state, which is no team.
    """

    reads_masks = False  # of actions: its values are of states

    def __init__(
        self,
        spec: GroupSpec,
        network: Callable[..., nn.Module],
        architecture: Architecture = Architecture(),  # noqa: B008 - frozen
        state_size: int | None = None,
        choices: int | None = None,
    ) -> None:
        super().__init__()
        kind, share, prune = architecture.critic, architecture.share_critic, architecture.prune_state
        normalize, limit = architecture.normalize_observation, architecture.observation_limit
        self.kind, self.choices = kind, choices
        self.n_agents = spec.n_agents
        self.uses_state = kind in ("state", "agent_state")
        if self.uses_state and state_size is None:
            raise UserError(
                f"algo.critic={kind} needs a global state, which this environment does not offer: "
                "use algo.critic=concat or algo.critic=local, or switch its global state on."
            )
        A, F = spec.n_agents, spec.observation_size
        self.team = reads_team(network)
        if self.team and kind in ("local", "state"):
            source = "one agent" if kind == "local" else "the global state"
            raise UserError(
                f"algo.critic={kind}: its network sees {source} only, and "
                "this one reads the whole team: use algo.critic=concat or agent_state, or network@critic_network=mlp."
            )
        ids = architecture.agent_ids and share == "shared" and (kind in ("local", "agent_state") or self.team)
        self.kept_features = keep(spec) if prune else None
        parts = spec.parts and observation_parts(spec, self.kept_features)
        if self.team and prune:
            raise UserError("algo.prune_state=true: its network reads the whole team, by the places of its features")
        features = F if self.kept_features is None else len(self.kept_features)
        self.inputs = Inputs(features, A, normalize and kind != "state", limit, ids, parts)
        self.state_inputs = Inputs(state_size or 0, A, normalize and self.uses_state, limit)
        size = {
            "local": self.inputs.size,
            "concat": self.inputs.size if self.team else A * F,
            "state": state_size or 0,
            "agent_state": (state_size or 0) + self.inputs.size,
        }[kind]
        seen, whole_state = self.inputs.parts, (Part(STATE, (state_size or 0,)),) if self.uses_state else ()
        told = {"local": seen, "concat": seen * A, "state": whole_state, "agent_state": whole_state + seen}[kind]
        network = with_parts(network, told)
        # One call for all agents: the input is common to them and the network is too.
        self.joint = share == "shared" and kind in ("concat", "state") and not self.team
        if self.joint:
            self.network: Any = network(size, spec.n_agents * (choices or 1))
        else:
            self.network = PerAgent(network, spec.n_agents, size, choices or 1, share == "shared")
        memory = getattr(self.network, "memory_size", 0)
        self.memory_shape = None if not memory else (memory,) if self.joint else (A, memory)
        self.per_agent = spec.ends and bool(memory) and not self.joint
        norm = architecture.value_norm
        self.value_norm = None if norm == "none" else ValueNorm(architecture.value_norm_beta)
        self.outputs = self._output_layers() if norm == "popart" else ()

    def _output_layers(self) -> tuple[nn.Linear, ...]:
        networks = (self.network,) if self.joint else tuple(self.network.networks)
        heads = [getattr(network, "head", None) for network in networks]
        layers = tuple(head for head in heads if isinstance(head, nn.Linear) and head.bias is not None)
        if len(layers) < len(heads):
            raise UserError(
                "algo.value_norm=popart: needs a critic network whose output is a torch.nn.Linear with a bias, "
                "called `head`; use running, or another network."
            )
        return layers

    def learn_inputs(self, observation: Tensor, state: Tensor | None, counts: Tensor | None = None) -> None:
        """Take what a rollout saw, [..., A, F] and [..., S], into the inputs' statistics, where there are any.

        counts: bool [..., A], which observations count; None = all.
        """
        self.inputs.learn(observation if self.kept_features is None else observation[..., self.kept_features], counts)
        if self.uses_state:
            assert state is not None  # the critic reads it, so the rollout has it
            self.state_inputs.learn(state)

    def denormalize(self, value: Tensor) -> Tensor:
        """What `forward` gave, in units of the return: float32 [...] -> [...]."""
        return value if self.value_norm is None else self.value_norm.denormalize(value)

    @torch.no_grad()
    def learn_scale(self, returns: Tensor, value: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take a rollout's returns into the statistics, once per rollout; then what the loss is to compare with.

        Args:
            returns: float32 [T, E, A].
            value: of the same frames at collection time, in units of the return, float32 [T, E, A].
            counts: bool [T, E, A], which returns the statistics are of; None = all.

        Returns:
            Returns and old values in units of `forward`'s: under the new statistics, but for the old values of
            `running`, which stay what the network said. Without normalisation both as they came.
        """
        if self.value_norm is None:
            return returns, value
        old, normalized = self.value_norm.mean_std(), self.value_norm.normalize(value)
        self.value_norm.update(returns, counts)
        for layer in self.outputs:
            rescale(layer, old, self.value_norm.mean_std())
        return self.value_norm.normalize(returns), self.value_norm.normalize(value) if self.outputs else normalized

    def forward(self, observation: Tensor, state: Tensor | None = None) -> Tensor:
        """Values of the agents, normalised ones where values are normalised (`denormalize` leads back).

        Args:
            observation: float32 [..., A, F].
            state: float32 [..., S]; read by the kinds state and agent_state only.

        Returns:
            float32 [..., A].
        """
        x = self._input(observation, state)
        return self._values(self.network(x))

    def unroll(
        self, observation: Tensor, state: Tensor | None, memory: Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Values along sequences.

        Args:
            observation, state: float32 [L, ..., A, F] and [L, ..., S], as `forward`'s.
            memory: float32 [..., *memory_shape], before the first step; zeros at an episode's beginning.
            start: bool [L, ...], True where an episode begins, so that the memory is forgotten; None = nowhere. Where
                each agent has a memory of its own it may be [L, ..., A].

        Returns:
            float32 [L, ..., A], and the memory after each step [L, ..., *memory_shape].
        """
        x = self._input(observation, state)
        if self.joint:
            value, memories = self.network(x, memory, start)
        else:
            value, memories = self.network.unroll(x, memory, start)
        return self._values(value), memories

    def _values(self, value: Tensor) -> Tensor:
        """The network's outputs as values of agents, [..., A], or of their choices, [..., A, K]."""
        value = value.float()
        if self.choices is not None:
            return value.unflatten(-1, (self.n_agents, self.choices)) if self.joint else value
        return value if self.joint else value.squeeze(-1)

    def _input(self, observation: Tensor, state: Tensor | None) -> Tensor:
        """What the network reads: [..., size] for all agents, or [..., A, size]."""
        if self.uses_state:
            assert state is not None  # as above
            x = state = self.state_inputs(state)
        if self.kept_features is not None:
            observation = observation[..., self.kept_features]
        if self.kind != "state":
            x = observation = self.inputs(observation)
        if self.kind == "concat" and not self.team:
            x = observation.flatten(-2)
        elif self.kind == "agent_state":
            assert state is not None
            parts = [state.unsqueeze(-2).expand(*observation.shape[:-1], -1), observation]
            x = torch.cat(parts[::-1] if self.team else parts, -1)  # a graph knows positions by their features' indices
        if not self.joint and self.kind in ("concat", "state") and not self.team:
            x = x.unsqueeze(-2).expand(*x.shape[:-1], self.n_agents, x.shape[-1])
        return x
