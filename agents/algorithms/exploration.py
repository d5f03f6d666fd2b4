"""Algorithms whose actors explore by a noise of their own, which a schedule moves over the run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from agents.algorithms.base import Algorithm
from agents.algorithms.coefficients import Scheduled, Shape
from agents.models.actor import Actor
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

    common: ClassVar[tuple[str, ...]] = ("explore", "explore_final", "explore_until", "explore_schedule")

    explore: Annotated[float, Field(ge=0)] = 0.0
    explore_final: Annotated[float, Field(ge=0)] = 0.0
    explore_until: Annotated[float, Field(gt=0, le=1)] = 1.0
    explore_schedule: Shape = "constant"
    error: Error = "l2"

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


class ExploringLoss(nn.Module):
    """Base of their losses: actors, their exploration, and how errors and groups come together.

    Attributes:
        actors: the modules that act, by group.
        critics: what values states, by group: nothing has weights of its own.
        configs: {group: its settings}.

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
        config: ExploringAlgorithm,
        configs: Mapping[str, ExploringAlgorithm],
    ) -> None:
        super().__init__()
        self.actors = nn.ModuleDict(actors)
        self.critics: dict[str, Any] = {}
        self.config, self.configs, self.groups = config, dict(configs), tuple(actors)
        self.uses_state = False
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
