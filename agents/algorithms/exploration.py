"""Algorithms whose actors explore by a noise of their own, which a schedule moves over the run."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from agents.algorithms.base import AgentsLoss, Algorithm
from agents.algorithms.coefficients import Scheduled, Shape
from agents.models.actor import Actor
from agents.models.parts import with_names
from agents.models.policy_heads.exploring import Exploring
from envs.spec import EnvSpec

Error = Literal["l2", "huber"]


@dataclass(frozen=True, kw_only=True)
class ExploringAlgorithm(Algorithm):
    """Settings of algorithms without critics of states; `conf/algo/base` explains each.

    Args:
        explore, explore_final, explore_until, explore_schedule: epsilon of greedy choices, or the noise's deviation,
            from the first to the second over this share of the run.
        error: of values: l2 = squared | huber = squared up to 1, linear beyond.
    """

    common: ClassVar[tuple[str, ...]] = (
        *(*Algorithm.common, "explore", "explore_final", "explore_until", "explore_schedule", "error"),
    )

    explore: Annotated[float, Field(ge=0)] = 0.0
    explore_final: Annotated[float, Field(ge=0)] = 0.0
    explore_until: Annotated[float, Field(gt=0, le=1)] = 1.0
    explore_schedule: Shape = "constant"
    error: Error = "l2"

    def networks(
        self,
        spec: EnvSpec,
        network: Callable[..., nn.Module],
        critic_network: Callable[..., nn.Module] | None,
        configs: Mapping[str, Self] | None,
    ) -> tuple[Any, ...]:
        """Actors by group; the loss builds its own critics, of `spec` by the factory that comes last."""
        network, critic_network = with_names(network, spec), critic_network and with_names(critic_network, spec)
        configs = dict.fromkeys(spec.groups, self) if configs is None else configs
        actors = {name: Actor(spec.groups[name], network, config) for name, config in configs.items()}
        return actors, spec, critic_network or network


class ExploringLoss(AgentsLoss):
    """Base of their losses: actors, their exploration, and how errors and groups come together.

    A subclass adds its critics and targets in `build`.

    Attributes:
        actors: the modules that act, by group.
        critics: what values states, by group: nothing has weights of its own.
        configs: {group: its settings}.

    Args:
        actors: by group.
        spec: the environment's.
        critic_network: factory of the critics' networks.
        config: settings of the run.
        configs: {group: its settings}; None = all groups have the run's.
        partly: groups that learn in a part of the environments, which the task's rows know.
    """

    def __init__(
        self,
        actors: Mapping[str, Actor],
        spec: EnvSpec,
        critic_network: Callable[..., nn.Module],
        config: ExploringAlgorithm,
        configs: Mapping[str, ExploringAlgorithm] | None = None,
        partly: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.actors = nn.ModuleDict(actors)
        self.critics = {}
        self.config, self.groups = config, tuple(actors)
        self.configs = dict.fromkeys(actors, config) if configs is None else dict(configs)
        self.uses_state = False
        self.exploration = Scheduled(config.explore, config.explore_schedule, config.explore_final)
        self._explore(config.explore)
        self.build(spec, critic_network)

    def build(self, spec: EnvSpec, critic_network: Callable[..., nn.Module]) -> None:
        """Build what is trained beside `actors`, such as critics and targets; `configs` has each group's settings.

        Args:
            spec: the environment's; groups by name in `spec.groups`.
            critic_network: factory `network(in_shape, out_features)`.

        Raises:
            UserError: settings that do not fit the groups.
        """

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

    def error(self, value: Tensor, target: Tensor) -> Tensor:
        """The error of values, of their shape."""
        if self.config.error == "l2":
            return (value - target).square()
        return F.huber_loss(value, target, reduction="none")

    def parts(self) -> dict[str, nn.Module]:
        """Named parts of the model, for learning rates, freezing and gradient norms."""
        return {"actor": self.actors}

    def summed(self, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The outputs of all groups as one: losses are added, figures averaged; with several, each by its name too."""
        out: dict[str, Tensor] = {}
        for key in dict.fromkeys(key for part in parts.values() for key in part):
            have = [part[key] for part in parts.values() if key in part]
            total = sum(have[1:], have[0])
            out[key] = total if key.endswith("loss") or len(have) == 1 else total / len(have)
        if len(parts) > 1:
            out |= {f"{group}/{key}": value for group, part in parts.items() for key, value in part.items()}
        return {key: value if key == "loss" else value.detach() for key, value in out.items()}


def mean_over(error: Tensor, alive: Tensor | None) -> Tensor:
    """The mean of [..., B, A] over the agents that are alive, bool [B, A]; None: all are."""
    if alive is None:
        return error.mean()
    return (error * alive).sum() / (alive.sum() * (error.numel() / alive.numel())).clamp(min=1)
