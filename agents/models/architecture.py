"""What decides an agent's networks, apart from how they are trained.

A saved policy is rebuilt from this alone, so nothing here may need training code, Hydra or a simulator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field

from agents.models.heads import Policy, Std
from agents.models.normalization import ValueNormalization
from marl.core.errors import UserError

Share = Literal["shared", "separate"]
CriticKind = Literal["local", "concat", "state", "agent_state"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The part of the algorithm's settings that shapes actors and critics; `conf/algo/ppo.yaml` explains each.

    `agents.models.actor.Actor` and `agents.models.critic.Critic` are built from it.

    Args:
        critic: what the critic sees, see `agents.models.critic.Critic`.
        share_actor, share_critic: shared = one network for all agents; separate = one per agent.
        policy, std, init_std, min_std: see `agents.models.heads.make_head`.
        value_norm: none | running = the critic's network predicts normalised returns
            (`agents.models.normalization.ValueNorm`) | popart = and its output layer is rescaled whenever the
            statistics move.
        value_norm_beta: see `ValueNorm`.
        normalize_observation, observation_limit, agent_ids: see `agents.models.inputs.Inputs`.
        prune_state: with critic=agent_state, leave out what the observation repeats of the state.

    Raises:
        UserError: init_std is not above min_std, no shared network for agent_ids, or nothing to prune.
    """

    critic: CriticKind = "concat"
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
