"""What a policy has to cope with in a robustness test: noisy observations, noisy actions, agents that stand still.

Shapes: E environments, A agents of a group, F features, D action dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from envs.base import Env
from envs.spec import ActionSpec
from marl.core.errors import UserError
from marl.core.seeding import generator


@dataclass
class Disturbance:
    """Settings of a disturbance; the default changes nothing, bitwise.

    Args:
        observation_noise: standard deviation of Gaussian noise on every feature, in the observation's own units.
        action_noise: standard deviation of Gaussian noise on continuous actions, as a share of half their range, or in
            the actions' own units where they have none; they stay in it. For discrete actions the probability that
            a random one takes the place of the chosen. Hybrid actions have both.
        frozen: agents that never act, drawn among all agents for every episode. Continuous actions are 0, or what is
            nearest to it in the range. Discrete ones are the first, which does nothing in VMAS.
    """

    observation_noise: Annotated[float, Field(ge=0)] = 0.0
    action_noise: Annotated[float, Field(ge=0)] = 0.0
    frozen: Annotated[int, Field(ge=0)] = 0

    def begin(self, env: Env, seed: int) -> "Running":
        """The disturbance of episodes in `env`. Raises UserError for more frozen agents than there are."""
        return Running(self, env, seed)


class Running:
    """A disturbance at work; its random numbers are its own stream, so the policy's samples stay as they were."""

    def __init__(self, settings: Disturbance, env: Env, seed: int):
        self.settings, self.env = settings, env
        self.generator = generator(seed, "disturbance", env.device)
        sizes = {name: group.n_agents for name, group in env.spec.groups.items()}
        total = sum(sizes.values())
        if settings.frozen > total:
            raise UserError(f"frozen={settings.frozen}: there are {total} agents")
        if settings.action_noise > 1 and any(g.action.nvec for g in env.spec.groups.values()):
            raise UserError(f"action_noise={settings.action_noise}: discrete actions need a probability, 0 to 1")
        order = torch.rand(env.num_envs, total, generator=self.generator, device=env.device).argsort(-1)
        self.frozen: Mapping[str, Tensor] = dict(  # {group: bool [E, A]}
            zip(sizes, (order < settings.frozen).split(list(sizes.values()), -1), strict=True)
        )

    def observation(self, observation: Tensor) -> Tensor:
        """What the policy sees instead of `observation` [E, A, F]."""
        if not self.settings.observation_noise:
            return observation
        return observation + self.settings.observation_noise * self._normal(observation)

    def action(self, group: str, action: Tensor) -> Tensor:
        """What is done instead of `action` [E, A, D], in the environment's units."""
        spec, noise = self.env.spec.groups[group].action, self.settings.action_noise
        if noise and spec.nvec:
            other = self.env.random_action(self.generator)[group]
            drawn = torch.rand(action.shape[:2], generator=self.generator, device=action.device) < noise
            C = spec.n_continuous
            chosen = torch.where(drawn.unsqueeze(-1), other[..., C:], action[..., C:])
            action = torch.cat([action[..., :C], chosen], -1) if C else chosen
        if noise and spec.low is not None:
            half = (spec.high - spec.low) / 2
            scale = noise * half if spec.bounded else noise * torch.where(half.isfinite(), half, 1.0)
            if spec.nvec:
                scale = torch.nn.functional.pad(scale, (0, len(spec.nvec)))
            action = spec.clamped(action + scale * self._normal(action))
        if self.settings.frozen:
            action = torch.where(self.frozen[group].unsqueeze(-1), idle(spec, action), action)
        return action

    def _normal(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)


def idle(spec: ActionSpec, like: Tensor) -> Tensor:
    """The action [E, A, D] that does nothing: 0, within the range; the first of discrete choices."""
    nothing = torch.zeros_like(like)
    return spec.clamped(nothing)
