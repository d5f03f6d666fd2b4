"""The actor: observations of a group of agents to actions, one network for all agents or one each.

Shapes: A agents in the group, F features, D action dimensions, `...` any leading dimensions.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from agents.distributions import Policy, Std, make_head
from agents.inputs import Inputs
from envs.base import GroupSpec
from marl.networks import PerAgent

Share = Literal["shared", "separate"]


class Actor(nn.Module):
    """Network and policy head of one group of agents.

    Args:
        spec: the group.
        network: factory `network(in_shape, out_features) -> nn.Module`.
        share: shared = one network for all agents; separate = one per agent.
        policy, std, init_std, min_std: see `agents.distributions.make_head`.
        normalize, limit, ids: see `agents.inputs.Inputs`; ids go to a shared network only, others need none.

    Raises:
        UserError: the policy does not fit the group's actions.
    """

    def __init__(
        self,
        spec: GroupSpec,
        network: Callable[..., nn.Module],
        share: Share = "shared",
        policy: Policy = "auto",
        std: Std = "state",
        init_std: float = 1.0,
        min_std: float = 0.01,
        normalize: bool = False,
        limit: float = 10.0,
        ids: bool = False,
    ) -> None:
        super().__init__()
        shared = share == "shared"
        self.head = make_head(spec.action, policy, std, init_std, min_std, shared)
        self.inputs = Inputs(spec.observation_size, spec.n_agents, normalize, limit, ids and shared)
        self.network = PerAgent(network, spec.n_agents, self.inputs.size, self.head.n_features, shared)

    def forward(self, observation: Tensor) -> Tensor:
        """Parameters of the policy: observation float32 [..., A, F] -> [..., A, n_features]."""
        return self.network(self.inputs(observation))

    def act(
        self,
        observation: Tensor,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Choose actions.

        Args:
            observation: float32 [..., A, F].
            deterministic: the policy's mode instead of a sample.
            generator: source of the randomness; None is the device's default generator.
            noise: float32 [..., A, noise_size] from `head.noise`, drawn beforehand.

        Returns:
            raw action [..., A, D] (`head.to_env` gives the environment's action), log-probability float32
            [..., A].
        """
        params = self(observation)
        if deterministic:
            raw = self.head.mode(params)
            return raw, self.head.log_prob(params, raw)
        return self.head.sample(params, generator, noise)

    def evaluate(self, observation: Tensor, raw: Tensor) -> Tensor:
        """Log-probability of given actions: observation [..., A, F], raw [..., A, D] -> float32 [..., A]."""
        return self.head.log_prob(self(observation), raw)
