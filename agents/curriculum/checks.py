"""Before a run: every stage's environment must fit the networks, and networks must fit every size of a team."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from agents.curriculum.curriculum import Curriculum
from agents.evaluation.episode_loop import require_time_limit
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.core.errors import UserError
from marl.core.schema import show
from marl.core.seeding import derive


def cheaply(factory: partial, seed: int, device: str | torch.device) -> EnvSpec:
    """The spec of what a factory builds, of few environments and without anything compiled."""
    env = factory(**{**factory.func.cheap, "seed": derive(seed, "probe"), "device": device})
    try:
        require_time_limit(env, "evaluation")
        return env.spec
    finally:
        env.close()


def check_stages(curriculum: Curriculum, device: str | torch.device) -> tuple[EnvSpec, bool]:
    """The spec of the full task, and whether stages differ from it in the sizes of teams.

    Raises:
        UserError: a stage cannot be built, or its groups, observations or actions differ.
    """
    stages = {}
    for place in curriculum.places():
        values = ", ".join(f"{key}={show(value)}" for key, value in curriculum.values(place).items())
        try:
            stages[values] = cheaply(curriculum.factory(place), curriculum.seed, device)
        except UserError as error:
            raise UserError(f"curriculum: its stage {values} cannot be built: {error}") from error
    spec = cheaply(curriculum.full_task, curriculum.seed, device)
    varies = False
    for values, stage in stages.items():
        if difference := unlike(spec, stage):
            raise UserError(f"curriculum: with {values} {difference}, and networks are built for one of them")
        varies |= any(stage.groups[name].n_agents != group.n_agents for name, group in spec.groups.items())
    return spec, varies


def unlike(spec: EnvSpec, other: EnvSpec) -> str:
    """In what environments differ that networks are built for, sizes of teams aside; "" where they don't."""
    if list(spec.groups) != list(other.groups):
        return f"the groups are {', '.join(other.groups)}, and {', '.join(spec.groups)} in the full task"
    if spec.state_size != other.state_size:
        return f"the global state has {other.state_size} features, and {spec.state_size} in the full task"
    for name, group in spec.groups.items():
        one, two = _about(group), _about(other.groups[name])
        for what, value in one.items():
            if value != two[what]:
                return f"{what} of group {name} is {two[what]}, and {value} in the full task"
    return ""


def _about(group: GroupSpec) -> dict[str, Any]:
    action = group.action
    about = {"observation_size": group.observation_size, "kind of action": action.kind}
    about |= {"number of choices": action.nvec, "size of action": action.size}
    ranges = {"low": _rows(action.low), "high": _rows(action.high), "mask": _rows(action.mask)}
    return about | {"range of actions": ranges, "masks": group.masks, "ends": group.ends, "parts": group.parts}


def _rows(values: torch.Tensor | None) -> list | None:
    """Rows [A, D], once where all agents' are equal, so that the number of agents does not count."""
    if values is None:
        return None
    return values[:1].tolist() if bool((values == values[:1]).all()) else values.tolist()


# ---- teams that change size


def of_any_size(spec: EnvSpec) -> EnvSpec:
    """The spec with one row of ranges for all agents of a group, [1, D]. UserError where agents' differ."""
    groups = {}
    for name, group in spec.groups.items():
        action = group.action
        if action.mask is not None or len(_rows(action.low) or [()]) > 1:
            raise UserError(f"curriculum: teams change size, and the agents of group {name} differ in their actions")
        low, high = (None if bound is None else bound[:1] for bound in (action.low, action.high))
        groups[name] = replace(group, action=ActionSpec(action.kind, low, high, action.nvec))
    return replace(spec, groups=groups)


def require_any_size(loss: nn.Module, algos: Mapping[str, Any], all_learn: bool) -> None:
    """Raises UserError where an actor or a critic is built for one number of agents."""
    reason = "curriculum: teams change size, which needs"
    if not all_learn:
        raise UserError(f"{reason} groups that all learn (groups={{}})")
    for name, algo in algos.items():
        actor, critic = loss.actors[name], loss.critics[name]
        if algo.agent_ids:
            raise UserError(f"{reason} algo.agent_ids=false")
        for key in ("share_actor", "share_critic"):
            if getattr(algo, key) != "shared":
                raise UserError(f"{reason} algo.{key}=shared, one network for all agents")
        if getattr(algo, "reward_norm", "none") != "none":
            raise UserError(f"{reason} algo.reward_norm=none, which runs per agent")
        if actor.memory_shape or critic.memory_shape:
            raise UserError(f"{reason} networks without a memory, such as network=mlp")
        if critic.joint:
            takes = "algo.critic=local, or algo.critic=concat with network=deep_sets, attention or graph"
            raise UserError(f"{reason} a critic of any number of agents: {takes}")
