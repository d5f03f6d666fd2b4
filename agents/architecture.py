"""What decides an agent's networks, apart from how they are trained; the one place where actors and critics are made.

A saved policy is rebuilt from this alone, so nothing here may need training code, Hydra or a simulator.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from agents.actor import Actor, Share
from agents.critic import Critic, Kind
from agents.distributions import Policy, Std
from agents.normalize import ValueNormalization
from envs.base import EnvSpec
from marl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The part of the algorithm's settings that shapes actors and critics; `conf/algo/ppo.yaml` explains each.

    Raises:
        UserError: init_std is not above min_std, no shared network for agent_ids, or nothing to prune.
    """

    critic: Kind = "concat"
    share_actor: Share = "shared"
    share_critic: Share = "shared"
    policy: Policy = "auto"
    std: Std = "state"
    init_std: Annotated[float, Field(gt=0)] = 1.0
    min_std: Annotated[float, Field(gt=0)] = 0.01
    value_norm: ValueNormalization = "none"
    value_norm_beta: Annotated[float, Field(ge=0, lt=1)] = 0.99999
    normalize_observation: bool = False
    observation_limit: Annotated[float, Field(gt=0)] = 10.0
    agent_ids: bool = False
    prune_state: bool = False

    def __post_init__(self) -> None:
        if self.init_std <= self.min_std:
            raise UserError(f"algo.init_std={self.init_std} must be above algo.min_std={self.min_std}.")
        if (
            self.agent_ids
            and self.share_actor == "separate"
            and not (self.share_critic == "shared" and self.critic in ("local", "agent_state"))
        ):
            raise UserError(
                "algo.agent_ids=true: needs a network that agents share, algo.share_actor=shared, or "
                "algo.share_critic=shared with algo.critic=local or agent_state."
            )

        if self.prune_state and self.critic != "agent_state":
            raise UserError(f"algo.prune_state=true: needs algo.critic=agent_state, not {self.critic}")

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """Whether a resumed run must keep a setting: those that shape networks do, or what their buffers mean."""
        return key in {each.name for each in fields(Architecture)} - {"value_norm_beta", "observation_limit"}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Architecture":
        """From an algorithm's settings, such as those of a saved run; what an older run lacks is the default."""
        return cls(**{each.name: settings[each.name] for each in fields(Architecture) if each.name in settings})

    def build(
        self,
        spec: EnvSpec,
        network: Callable[..., nn.Module],
        critic_network: Callable[..., nn.Module] | None = None,
        groups: Mapping[str, "Architecture"] | None = None,
    ) -> tuple[dict[str, Actor], dict[str, Critic]]:
        """Actors and critics of an environment's groups, by group; the random numbers are drawn group by group.

        Args:
            spec: the environment.
            network: factory `network(in_shape, out_features) -> nn.Module` of the actors.
            critic_network: the same of the critics; None = `network`.
            groups: {group: its own settings} of those that get networks; None = all groups, with these.

        Raises:
            UserError: the policy does not fit the actions, or the critic needs a state the environment lacks.
        """
        actors, critics = {}, {}
        for name, own in (dict.fromkeys(spec.groups, self) if groups is None else groups).items():
            group = spec.groups[name]
            inputs = {"normalize": own.normalize_observation, "limit": own.observation_limit, "ids": own.agent_ids}
            actors[name] = Actor(
                group, network, own.share_actor, own.policy, own.std, own.init_std, own.min_std, **inputs
            )
            critics[name] = Critic(
                group,
                critic_network or network,
                own.critic,
                own.share_critic,
                spec.state_size,
                own.value_norm,
                own.value_norm_beta,
                prune=own.prune_state,
                **inputs,
            )
        return actors, critics
