"""What algorithms that learn from replayed steps have in common: settings, and how their losses are called.

Shapes: B minibatch rows (environment frames), A agents in a group, F features, D action dimensions, K choices, S global
state features.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from agents.algorithms.base import Algorithm
from agents.algorithms.coefficients import Scheduled, Shape
from agents.models.action_values.target_networks import TargetNetwork
from agents.models.actor import Actor
from agents.models.policy_heads.exploring import Exploring
from envs.spec import EnvSpec

Error = Literal["l2", "huber"]


@dataclass(frozen=True, kw_only=True)
class Replayed(Algorithm):
    """Settings of the algorithms with a replay buffer; their YAML files explain each.

    Args:
        rollout_steps: steps of every environment per iteration.
        updates: gradient steps per iteration.
        minibatch_size: frames per gradient step.
        buffer_frames: capacity of the replay buffer.
        prefill: frames that are collected before the first update.
        n_step: rewards summed before a target bootstraps.
        tau, target_every: see `agents.models.action_values.target_networks.TargetNetwork`.
        explore, explore_final, explore_until, explore_schedule: epsilon of greedy choices, or the noise's deviation,
            from the first to the second over this share of the run.
        error: of values: l2 = squared | huber = squared up to 1, linear beyond.
    """

    per_iteration: ClassVar[tuple[str, ...]] = ("updates",)
    divided: ClassVar[tuple[str, ...]] = ("minibatch_size", "buffer_frames", "prefill")
    common: ClassVar[tuple[str, ...]] = (
        *("rollout_steps", "updates", "minibatch_size", "buffer_frames", "prefill", "n_step"),
        *("tau", "target_every", "explore", "explore_final", "explore_until", "explore_schedule", "gamma"),
    )

    rollout_steps: Annotated[int, Field(ge=1)] = 100
    updates: Annotated[int, Field(ge=1)] = 1000
    minibatch_size: Annotated[int, Field(ge=1)] = 128
    buffer_frames: Annotated[int, Field(ge=1)] = 1_000_000
    prefill: Annotated[int, Field(ge=0)] = 0
    n_step: Annotated[int, Field(ge=1)] = 1
    tau: Annotated[float, Field(gt=0, le=1)] = 0.005
    target_every: Annotated[int, Field(ge=1)] = 1
    explore: Annotated[float, Field(ge=0)] = 0.0
    explore_final: Annotated[float, Field(ge=0)] = 0.0
    explore_until: Annotated[float, Field(gt=0, le=1)] = 1.0
    explore_schedule: Shape = "constant"
    error: Error = "l2"

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """As `Algorithm`; also what the buffer's and the targets' part of a checkpoint depends on."""
        return key in ("rollout_steps", "buffer_frames", "twin", "mixer") or super().keeps_on_resume(key)

    @property
    @abstractmethod
    def loss_class(self) -> type["ReplayLoss"]:
        """The loss that trains by these settings."""

    def make_loss(
        self,
        spec: EnvSpec,
        network: Callable[..., nn.Module],
        critic_network: Callable[..., nn.Module] | None = None,
        configs: Mapping[str, Self] | None = None,
        **more: Any,
    ) -> nn.Module:
        """As `Algorithm.make_loss`; there are no critics of states."""
        configs = configs or dict.fromkeys(spec.groups, self)
        actors = {name: Actor(spec.groups[name], network, config) for name, config in configs.items()}
        return self.loss_class(actors, spec, critic_network or network, self, configs)


class ReplayLoss(nn.Module):
    """Base of the losses from replayed steps: actors, their exploration, and targets that follow.

    Attributes:
        actors: the modules that act, by group.
        critics: critics of states: none.
        configs: {group: its settings}.
        updates: minibatches trained on so far.

    Args:
        actors: by group.
        spec: the environment's.
        critic_network: factory of the critics' networks.
        config: settings of the run.
        configs: {group: its settings}.
    """

    def __init__(
        self,
        actors: Mapping[str, Actor],
        spec: EnvSpec,
        critic_network: Callable[..., nn.Module],
        config: Replayed,
        configs: Mapping[str, Replayed],
    ) -> None:
        super().__init__()
        self.actors, self.critics = nn.ModuleDict(actors), nn.ModuleDict()
        self.config, self.configs, self.groups = config, dict(configs), tuple(actors)
        self.uses_state = False
        self.updates = 0
        self.exploration = Scheduled(config.explore, config.explore_schedule, config.explore_final)
        self._explore(config.explore)

    def _explore(self, amount: float) -> None:
        for actor in self.actors.values():
            if isinstance(actor.head, Exploring):
                actor.head.exploration.fill_(amount)

    def advance(self, progress: float) -> dict[str, float]:
        """Set what is scheduled to its value at `progress` of the run, 0 to 1; those values by name."""
        if self.exploration.shape == "constant":
            return {}
        amount = self.exploration.at(min(progress / self.config.explore_until, 1.0))
        self._explore(amount)
        return {"exploration": amount}

    def count_from(self, updates: int) -> None:
        """Go on as after so many minibatches: the count decides when targets follow and delayed actors are trained."""
        self.updates = updates

    def follow(self) -> None:
        """A minibatch was trained on: the targets follow."""
        self.updates += 1
        for module in self.modules():
            if isinstance(module, TargetNetwork):
                module.follow(self.updates)

    def error(self, value: Tensor, target: Tensor) -> Tensor:
        """The error of values, of their shape."""
        if self.config.error == "l2":
            return (value - target).square()
        return F.huber_loss(value, target, reduction="none")

    def parts(self) -> dict[str, nn.Module]:
        """Named parts of the model, for learning rates, freezing and gradient norms."""
        return {"actor": self.actors}

    def target(self, network: nn.Module) -> TargetNetwork:
        """A target network by the run's settings."""
        return TargetNetwork(network, self.config.tau, self.config.target_every)

    def summed(self, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The outputs of all groups as one: losses are added, figures averaged; with several, each by its name too."""
        out: dict[str, Tensor] = {}
        for key in dict.fromkeys(key for part in parts.values() for key in part):
            have = [part[key] for part in parts.values() if key in part]
            out[key] = sum(have) if key.endswith("loss") else sum(have) / len(have)
        if len(parts) > 1:
            out |= {f"{group}/{key}": value for group, part in parts.items() for key, value in part.items()}
        return {key: value if key == "loss" else value.detach() for key, value in out.items()}


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


def mean_over(error: Tensor, alive: Tensor | None) -> Tensor:
    """The mean of [..., B, A] over the agents that are alive, bool [B, A]; None: all are."""
    if alive is None:
        return error.mean()
    return (error * alive).sum() / (alive.sum() * (error.numel() / alive.numel())).clamp(min=1)
