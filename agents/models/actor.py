"""The actor: observations of a group of agents to actions, one network for all agents or one each.

Shapes: A agents in the group, F features, D action dimensions, L steps of a sequence, M numbers of memory, `...` any
leading dimensions.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from agents.models.architecture import Architecture
from agents.models.exploring_heads import EXPLORING, make_exploring
from agents.models.heads import ABSENT, Head, make_head
from agents.models.inputs import Inputs
from envs.spec import GroupSpec
from marl.core.errors import UserError
from marl.networks import PerAgent


class Actor(nn.Module):
    """Network and policy head of one group of agents.

    Args:
        spec: the group.
        network: factory `network(in_shape, out_features) -> nn.Module`.
        architecture: sharing, policy head and inputs. Ids go to a shared network only, others need none.

    Attributes:
        memory_shape: (A, M), what the network remembers from step to step; None where it remembers nothing. A network
            with a memory is asked through `unroll` and `remember`.

    Raises:
        UserError: the policy does not fit the group's actions, or masks of continuous actions.
    """

    def __init__(
        self,
        spec: GroupSpec,
        network: Callable[..., nn.Module],
        architecture: Architecture = Architecture(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__()
        a = architecture
        shared = a.share_actor == "shared"
        if a.policy in EXPLORING:
            self.head: Head = make_exploring(spec.action, a.policy)
        else:
            self.head = make_head(spec.action, a.policy, a.std, a.init_std, a.min_std, shared)
        self.n_agents, self.masks = spec.n_agents, spec.masks
        if "action" in spec.masks and spec.action.kind == "continuous":
            raise UserError(f"group {spec.name}: its actions are continuous; only discrete ones can be masked.")
        self.inputs = Inputs(
            spec.observation_size, spec.n_agents, a.normalize_observation, a.observation_limit, a.agent_ids and shared
        )
        self.network = PerAgent(network, spec.n_agents, self.inputs.size, self.head.n_features, shared)
        size = getattr(self.network, "memory_size", 0)
        self.memory_shape = (spec.n_agents, size) if size else None

    def forward(self, observation: Tensor, mask: Tensor | None = None, only: int | None = None) -> Tensor:
        """Parameters of the policy.

        Args:
            observation: float32 [..., A, F].
            mask: bool [..., A, n_features] of a categorical policy. Where False the logit is that of a choice that does
                not exist: it is never drawn, has no part in the entropy and gets no gradient (Huang and Ontanon
                2022). Where nothing is allowed, everything is.
            only: one agent with a network of its own, the others' parameters being zeros; None = all.

        Returns:
            [..., A, n_features].
        """
        return allowed(self.network(self.inputs(observation), only), mask)

    def unroll(
        self, observation: Tensor, memory: Tensor, start: Tensor | None = None, only: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Parameters of the policy along sequences, before any mask (`allowed`).

        Args:
            observation: float32 [L, ..., A, F].
            memory: float32 [..., A, M], before the first step; zeros at an episode's beginning.
            start: bool [L, ...], True where an episode begins, so that the memory is forgotten; None = nowhere.
            only: as in `forward`.

        Returns:
            [L, ..., A, n_features], and the memory after each step [L, ..., A, M].
        """
        return self.network.unroll(self.inputs(observation), memory, start, only)

    def remember(self, observation: Tensor, memory: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step: observation [..., A, F], memory [..., A, M] -> parameters, as `forward`'s, and memory after it."""
        params, memories = self.unroll(observation.unsqueeze(0), memory)
        return allowed(params[0], mask), memories[0]

    def act(
        self,
        observation: Tensor,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Choose actions.

        Args:
            observation: float32 [..., A, F].
            deterministic: the policy's mode instead of a sample.
            generator: source of the randomness; None is the device's default generator.
            noise: float32 [..., A, noise_size] from `head.noise`, drawn beforehand.
            mask: of actions, see `forward`.

        Returns:
            raw action [..., A, D] (`head.to_env` gives the environment's action), log-probability float32
            [..., A].
        """
        return self.choose(self(observation, mask), deterministic, generator, noise)

    def choose(
        self,
        params: Tensor,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `act`, from the policy's parameters [..., A, n_features]."""
        if deterministic:
            raw = self.head.mode(params)
            return raw, self.head.log_prob(params, raw)
        return self.head.sample(params, generator, noise)

    def evaluate(self, observation: Tensor, raw: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probability of given actions: observation [..., A, F], raw [..., A, D] -> float32 [..., A]."""
        return self.head.log_prob(self(observation, mask), raw)


def allowed(params: Tensor, mask: Tensor | None) -> Tensor:
    """Parameters with the logits of forbidden choices (mask False) as those of choices that don't exist."""
    return params if mask is None else params.masked_fill(~mask, ABSENT)
