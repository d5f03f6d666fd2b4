"""What every algorithm for agents says of itself: its networks, its loss, and which of its settings are special.

Code that serves every task asks the algorithm's class, and knows no algorithm's settings by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field
from torch import nn

from agents.models.actor_critic import build_networks
from agents.models.architecture import Architecture
from envs.spec import EnvSpec

# What a time limit means to the targets, see `agents.collection.ends.for_targets`.
TimeLimit = Literal["bootstrap", "end"]


class AgentsLoss(nn.Module):
    """What trains agents: a batch -> a dict of device scalars, of which "loss" is minimised and the rest is logged.

    actors, critics: {group: `agents.models.actor.Actor`} and {group: what values states}, as `nn.ModuleDict` (critics
        without weights of their own: a dict). They are of any type to type checkers, to whom a `nn.ModuleDict` is no
        mapping and holds modules of no certain kind.
    """

    actors: Any
    critics: Any


@dataclass(frozen=True, kw_only=True)
class Algorithm(Architecture, ABC):
    """Settings that algorithms have in common: the networks' (`Architecture`), and those of rewards and targets.

    Class attributes, each a tuple of names of settings:
        per_iteration: they decide how many optimiser steps an iteration has.
        divided: numbers of the whole run, of which each of several processes takes an equal part.
        common: settings of the one training loop, which no group of agents can have of its own.

    Raises:
        UserError: as `Architecture`.
    """

    per_iteration: ClassVar[tuple[str, ...]] = ()
    divided: ClassVar[tuple[str, ...]] = ()
    common: ClassVar[tuple[str, ...]] = ("time_limit",)

    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    reward_scale: Annotated[float, Field(gt=0)] = 1.0
    time_limit: TimeLimit = "bootstrap"

    @property
    @abstractmethod
    def loss_class(self) -> type[AgentsLoss]:
        """The module that trains by these settings, built as `make_loss` says."""

    def make_loss(
        self,
        spec: EnvSpec,
        network: Callable[..., nn.Module],
        critic_network: Callable[..., nn.Module] | None = None,
        configs: Mapping[str, Self] | None = None,
        **more: Any,
    ) -> AgentsLoss:
        """Actors and critics of an environment, and the loss module that trains them.

        Args:
            spec, network, critic_network: as for `agents.models.actor_critic.build_networks`.
            configs: {group: its own settings} of the groups that learn; None = all, with these.
            more: further keywords of the loss's class.

        Raises:
            UserError: as `agents.models.actor_critic.build_networks`.
        """
        return self.loss_class(*self.networks(spec, network, critic_network, configs), self, configs, **more)

    def networks(
        self,
        spec: EnvSpec,
        network: Callable[..., nn.Module],
        critic_network: Callable[..., nn.Module] | None,
        configs: Mapping[str, Self] | None,
    ) -> tuple[Any, ...]:
        """What the loss's class takes first: here actors and critics of states, each by group."""
        return build_networks(self, spec, network, critic_network, configs)
