"""What algorithms that learn from replayed steps have in common: settings, and how their losses are called.

Shapes: B minibatch rows (environment frames), A agents in a group, F features, D action dimensions, K choices, S global
state features.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from agents.algorithms.exploration import ExploringAlgorithm, ExploringLoss, mean_over
from agents.fused_ops import replay_terms
from agents.models.action_values.target_networks import TargetNetwork
from agents.models.actor import Actor
from envs.spec import EnvSpec


@dataclass(frozen=True, kw_only=True)
class Replayed(ExploringAlgorithm):
    """Settings of the algorithms with a replay buffer, beside the exploration's; their YAML files explain each.

    Args:
        rollout_steps: steps of every environment per iteration.
        updates: gradient steps per iteration.
        minibatch_size: frames per gradient step.
        buffer_frames: capacity of the replay buffer.
        prefill: frames that are collected before the first update.
        n_step: rewards summed before a target bootstraps.
        tau, target_every: see `agents.models.action_values.target_networks.TargetNetwork`.
    """

    per_iteration: ClassVar[tuple[str, ...]] = ("updates",)
    divided: ClassVar[tuple[str, ...]] = ("minibatch_size", "buffer_frames", "prefill")
    common: ClassVar[tuple[str, ...]] = (
        *("rollout_steps", "updates", "minibatch_size", "buffer_frames", "prefill", "n_step"),
        *("tau", "target_every", "gamma", *ExploringAlgorithm.common),
    )

    rollout_steps: Annotated[int, Field(ge=1)] = 100
    updates: Annotated[int, Field(ge=1)] = 1000
    minibatch_size: Annotated[int, Field(ge=1)] = 128
    buffer_frames: Annotated[int, Field(ge=1)] = 1_000_000
    prefill: Annotated[int, Field(ge=0)] = 0
    n_step: Annotated[int, Field(ge=1)] = 1
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    target_every: Annotated[int, Field(ge=1)] = 1

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """As `Algorithm`; also what the buffer's and the targets' part of a checkpoint depends on."""
        return key in ("rollout_steps", "buffer_frames", "twin", "mixer") or super().keeps_on_resume(key)

    @property
    @abstractmethod
    def loss_class(self) -> type["ReplayLoss"]:
        """The loss that trains by these settings."""


class ReplayLoss(ExploringLoss):
    """Base of the losses from replayed steps: targets follow what is trained.

    Attributes:
        updates: minibatches trained on so far.

    Args:
        actors, spec, critic_network, config, configs: as for `ExploringLoss`.
    """

    def __init__(
        self,
        actors: Mapping[str, Actor],
        spec: EnvSpec,
        critic_network: Callable[..., nn.Module],
        config: Replayed,
        configs: Mapping[str, Replayed],
    ) -> None:
        super().__init__(actors, spec, critic_network, config, configs)
        self.updates = 0
        self._targets: list[TargetNetwork] | None = None  # found once they are all there

    def count_from(self, updates: int) -> None:
        """Go on as after so many minibatches: the count decides when targets follow and delayed actors are trained."""
        self.updates = updates

    def follow(self) -> None:
        """A minibatch was trained on: the targets follow."""
        self.updates += 1
        if self._targets is None:
            self._targets = [module for module in self.modules() if isinstance(module, TargetNetwork)]
        for target in self._targets:
            target.follow(self.updates)

    def target(self, network: nn.Module) -> TargetNetwork:
        """A target network by the run's settings."""
        return TargetNetwork(network, self.config.tau, self.config.target_every)

    def errors(
        self,
        q: Tensor,
        values: Tensor,
        reward: Tensor,
        terminated: Tensor,
        discount: Tensor,
        alive: Tensor | None,
        scale: float = 1.0,
        penalty: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean errors against targets of one step, summed over N, and the mean of q over who is alive.

        Args:
            q: float32 [N, B, ...].
            values: of what follows, float32 [M, B, ...], the smallest of which counts.
            reward: float32 [B, ...], `scale` times of which counts.
            terminated: bool [B] or [B, ...].
            discount: float32 [B].
            alive: bool [B, A] where agents' deaths are known.
            penalty: what is taken from the values, float32 [B, ...].
        """
        if alive is None and self.config.error == "l2":
            terms = replay_terms.td_error(q, values, penalty, reward, scale, terminated, discount)
            if terms is not None:
                return terms
        following = values.amin(0) if penalty is None else values.amin(0) - penalty
        target = bootstrapped(reward if scale == 1 else scale * reward, following, terminated, discount)
        return mean_over(self.error(q, target.expand_as(q)), alive) * len(q), mean_over(q.detach(), alive)


@contextmanager
def without_gradient(module: nn.Module) -> Iterator[None]:
    """The module's weights are constants for what is computed inside."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def ended(batch: Mapping, group: str) -> Tensor:
    """Whose future is none: bool [B], or each agent's own [B, A] where a group's agents end each on its own."""
    own = batch[group]
    return own["terminated"] if "terminated" in own.keys() else batch["terminated"]


def bootstrapped(reward: Tensor, value: Tensor, terminated: Tensor, discount: Tensor) -> Tensor:
    """reward + discount (1 - terminated) value, [B, ...]; discount [B], terminated [B] or, each agent's own, [B, A]."""
    shape = (-1, *[1] * (reward.dim() - 1))
    if terminated.dim() < reward.dim():
        terminated = terminated.view(shape)
    return torch.addcmul(reward, discount.view(shape), value.masked_fill(terminated, 0.0))
