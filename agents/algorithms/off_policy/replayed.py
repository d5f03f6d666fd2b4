"""What algorithms that learn from replayed steps have in common: settings, and how their losses are called.

Shapes: B minibatch rows (environment frames), A agents in a group, F features, D action dimensions, K choices, S global
state features.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from agents.algorithms.exploration import ExploringAlgorithm, ExploringLoss, mean_over
from agents.fused_ops import replay_terms
from agents.models.action_values.target_networks import TargetNetwork
from agents.models.replayed_sequences import Memory


@dataclass(frozen=True, kw_only=True)
class Replayed(ExploringAlgorithm):
    """Settings of the algorithms with a replay buffer, beside the exploration's; their YAML files explain each.

    Class attribute `recurrent`: whether their loss trains networks with a memory.

    Args:
        rollout_steps: steps of every environment per iteration.
        updates: gradient steps per iteration.
        minibatch_size: frames per gradient step.
        buffer_frames: capacity of the replay buffer.
        buffer_on: where it lies: device = the run's | disk = files beside the run (`agents.collection.replay.memory`).
        prefill: frames that are collected before the first update.
        n_step: rewards summed before a target bootstraps.
        priority, priority_beta, priority_beta_final, priority_floor: alpha, beta at the beginning and at the end, and
            the floor of `agents.collection.replay.prioritised.PrioritisedReplay`; priority=0 draws uniformly.
        chunk_length, burn_in, memory: of networks with a memory, see `agents.collection.replay.sequences.Sequences`.
        tau, target_every: see `agents.models.action_values.target_networks.TargetNetwork`.
    """

    recurrent: ClassVar[bool] = False
    per_iteration: ClassVar[tuple[str, ...]] = ("updates",)
    divided: ClassVar[tuple[str, ...]] = ("minibatch_size", "buffer_frames", "prefill")
    common: ClassVar[tuple[str, ...]] = (
        *("rollout_steps", "updates", "minibatch_size", "buffer_frames", "buffer_on", "prefill", "n_step"),
        *("priority", "priority_beta", "priority_beta_final", "priority_floor", "chunk_length", "burn_in", "memory"),
        *("tau", "target_every", "gamma", *ExploringAlgorithm.common),
    )

    rollout_steps: Annotated[int, Field(ge=1)] = 100
    updates: Annotated[int, Field(ge=1)] = 1000
    minibatch_size: Annotated[int, Field(ge=1)] = 128
    buffer_frames: Annotated[int, Field(ge=1)] = 1_000_000
    buffer_on: Literal["device", "disk"] = "device"
    prefill: Annotated[int, Field(ge=0)] = 0
    chunk_length: Annotated[int, Field(ge=1)] = 10
    burn_in: Annotated[int, Field(ge=0)] = 0
    memory: Memory = "stored"
    n_step: Annotated[int, Field(ge=1)] = 1
    priority: Annotated[float, Field(ge=0, le=1)] = 0.0
    priority_beta: Annotated[float, Field(ge=0, le=1)] = 0.4
    priority_beta_final: Annotated[float, Field(ge=0, le=1)] = 1.0
    priority_floor: Annotated[float, Field(gt=0)] = 1e-6
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    target_every: Annotated[int, Field(ge=1)] = 1

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """As `Algorithm`; also what the buffer's and the targets' part of a checkpoint depends on."""
        kept = ("rollout_steps", "buffer_frames", "priority", "twin", "mixer", "chunk_length", "memory", "time_limit")
        return key in kept or super().keeps_on_resume(key)

    @property
    @abstractmethod
    def loss_class(self) -> type["ReplayLoss"]:
        """The loss that trains by these settings."""


class ReplayLoss(ExploringLoss):
    """Base of the losses from replayed steps: targets follow what is trained.

    Attributes:
        updates: minibatches trained on so far.
    """

    updates = 0
    _targets: list[TargetNetwork] | None = None  # found once they are all there

    def count_from(self, updates: int) -> None:
        """Go on as after so many minibatches: the count decides when targets follow and delayed actors are trained."""
        self.updates = updates

    @property
    def period(self) -> int:
        """Minibatches after which all begins again: what one trains, and which targets follow it."""
        return self.config.target_every

    def follow(self) -> None:
        """A minibatch was trained on: the targets follow."""
        self.updates += 1
        for target in self._all_targets():
            target.follow(self.updates)

    def follow_key(self) -> tuple:
        """Which targets follow the next minibatch: what decides `follow` beside tensors, as `capture_key` `forward`."""
        return tuple(target.is_due(self.updates + 1) for target in self._all_targets())

    def _all_targets(self) -> list[TargetNetwork]:
        if self._targets is None:
            self._targets = [module for module in self.modules() if isinstance(module, TargetNetwork)]
        return self._targets

    @staticmethod
    def unit(action: Tensor) -> Tensor:
        """Raw actions in the unit that critics read, half the range: these are."""
        return action

    def target(self, network: nn.Module) -> TargetNetwork:
        """A target network by the run's settings."""
        return TargetNetwork(network, self.config.tau, self.config.target_every)

    def errors(
        self,
        q: Tensor,
        values: Tensor,
        reward: Tensor,
        terminated: Tensor,
        batch: Mapping,
        alive: Tensor | None,
        scale: float = 1.0,
        penalty: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Mean errors against targets of one step (or n), by the weights of a prioritised draw where there are such.

        Args:
            q: float32 [N, B, ...].
            values: of what follows, float32 [M, B, ...], the smallest of which counts.
            reward: float32 [B, ...], `scale` times of which counts.
            terminated: bool [B] or [B, ...].
            batch: its "discount", float32 [B], and "weight", float32 [B].
            alive: bool [B, A] where agents' deaths are known.
            penalty: what is taken from the values, float32 [B, ...].

        Returns:
            td_loss: the errors' mean, summed over N. q: its mean over who is alive. td_error [B] of a prioritised draw:
            the largest of the N absolute errors, in the mean of the agents that are alive.
        """
        discount, weight = batch["discount"], batch["weight"] if "weight" in batch.keys() else None  # noqa: SIM118
        if alive is None and weight is None and self.config.error == "l2":
            terms = replay_terms.td_error(q, values, penalty, reward, scale, terminated, discount)
            if terms is not None:
                return {"td_loss": terms[0], "q": terms[1]}
        following = values.amin(0) if penalty is None else values.amin(0) - penalty
        target = bootstrapped(reward if scale == 1 else scale * reward, following, terminated, discount)
        error, out = self.error(q, target.expand_as(q)), {"q": mean_over(q.detach(), alive)}
        if weight is not None:
            error = error * weight.view(-1, *[1] * (reward.dim() - 1))
            out["td_error"] = _of_agents((q.detach() - target).abs().amax(0), alive)
        return {"td_loss": mean_over(error, alive) * len(q), **out}


def _of_agents(error: Tensor, alive: Tensor | None) -> Tensor:
    """Errors [B] or [B, A] as one per row, [B]."""
    if error.dim() == 1:
        return error
    return error.mean(-1) if alive is None else (error * alive).sum(-1) / alive.sum(-1).clamp(min=1)


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
