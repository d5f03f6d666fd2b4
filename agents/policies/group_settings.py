"""Who plays each group of agents: one that learns, with settings of its own, or one that is not trained here.

The settings are `groups.NAME` of a configuration; a group that is not named learns by the run's algorithm.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from agents.algorithms.base import Algorithm
from agents.models.architecture import Architecture
from envs.spec import EnvSpec
from marl.core.errors import UserError, closest
from marl.core.schema import check_arguments

LEARN, POOL = "learn", "pool"

A = TypeVar("A", bound=Architecture)


@dataclass(frozen=True, kw_only=True)
class GroupSettings:
    """How one group is played.

    Args:
        policy: learn = trained by this run | pool = past versions of the group `of` | random | still | simple_tag |
            heuristic (VMAS's own, of the scenarios that have one) | a run directory, checkpoint, policy file or
            zoo/NAME, whose policy plays as it is | a dotted path, see `agents.players.scripted`.
        algo: settings of the algorithm that this group has of its own, such as {"critic": "local", "clip": 0.1}.
        of: for pool: the learning group whose past versions play; for a saved policy: which of its groups plays.
        past: share of the environments in which past versions of this learning group play instead of it: the others
            train against them, and it learns nothing from those environments.
        eval_policy: who plays the group in evaluations, written as `policy`; None: as in training, but a pool by the
            newest version of `of`.
        eval_against: who plays the other agents of this learning group in evaluations, written as `policy`: of episode
            e the policy plays agent e mod A alone, and only that one counts; None: the policy plays them all.
        every, size: iterations between versions, and how many at most are drawn from, spread evenly over the run.
        at_once: blocks of environments, each with a version drawn for every rollout.
        draw: uniform | recent (the newest of n versions n times as often as the oldest).
    """

    policy: str = LEARN
    algo: dict[str, Any] = field(default_factory=dict)
    of: str | None = None
    past: Annotated[float, Field(ge=0, lt=1)] = 0.0
    eval_policy: str | None = None
    eval_against: str | None = None
    every: Annotated[int, Field(ge=1)] = 10
    size: Annotated[int, Field(ge=1)] = 20
    at_once: Annotated[int, Field(ge=1)] = 4
    draw: Literal["uniform", "recent"] = "uniform"

    @property
    def learns(self) -> bool:
        return self.policy == LEARN

    @property
    def pools(self) -> bool:
        """Whether past versions play this group, everywhere or in some environments."""
        return self.policy == POOL or self.past > 0


def read(nodes: Mapping[str, Any] | None, spec: EnvSpec) -> dict[str, GroupSettings]:
    """The settings of all groups of an environment.

    Raises:
        UserError: unknown groups or keys, values out of range, no group that learns, or a combination without meaning.
    """
    nodes = nodes or {}
    for name, values in nodes.items():
        if name not in spec.groups:
            hint = closest(name, spec.groups)
            raise UserError(f"groups.{name}: no such group{hint} (there are {_list(spec.groups)})")
        if not isinstance(values, Mapping):
            raise UserError(f"groups.{name}={values}: must be settings, such as groups.{name}.policy=random")
        if isinstance(values.get("algo"), str):
            raise UserError(
                f"groups.{name}.algo={values['algo']}: all groups learn by one algorithm, algo=NAME; "
                f"groups.{name}.algo.KEY=VALUE changes its settings, such as critic=local (IPPO, IDDPG) or mixer=none"
            )
        check_arguments(GroupSettings, values, f"groups.{name}")
    settings = {name: GroupSettings(**nodes.get(name, {})) for name in spec.groups}
    learning = [name for name, one in settings.items() if one.learns]
    if not learning:
        raise UserError("groups: none learns; leave at least one group's policy at learn")
    for name, one in settings.items():
        for key in () if one.learns else ("algo", "past", "eval_against"):
            if getattr(one, key):
                raise UserError(f"groups.{name}.{key}: is of groups that learn; groups.{name}.policy={one.policy}")
        if one.policy == POOL:
            _check_pool(name, one, spec, learning)
        elif one.learns and one.of is not None:
            raise UserError(f"groups.{name}.of={one.of}: is read with groups.{name}.policy=pool or a saved policy only")
        for key in ("eval_policy", "eval_against"):
            if getattr(one, key) in (LEARN, POOL):
                raise UserError(f"groups.{name}.{key}={getattr(one, key)}: must be random, still, a saved policy, …")
        if one.eval_against is not None:
            _check_against(name, one, spec.groups[name].n_agents)
    behind = [name for name in learning if settings[name].past]
    if sum(settings[name].past for name in behind) > 1:
        raise UserError(
            f"groups: past of {_list(behind)} must add up to at most 1, since a group learns in each environment"
        )
    return settings


def _check_pool(name: str, one: GroupSettings, spec: EnvSpec, learning: Iterable[str]) -> None:
    if one.of is None or one.of not in learning:
        raise UserError(
            f"groups.{name}.of={one.of}: must be a group that learns ({_list(learning)}), whose past versions play"
        )
    mine, theirs = spec.groups[name], spec.groups[one.of]
    if sizes(mine) != sizes(theirs):
        raise UserError(
            f"groups.{name}.policy=pool: its sizes {sizes(mine)} differ from {sizes(theirs)} of {one.of}; where teams "
            f"differ, groups.GROUP.past=0.25 lets each train against past versions of the other"
        )


def _check_against(name: str, one: GroupSettings, n_agents: int) -> None:
    where = f"groups.{name}.eval_against={one.eval_against}"
    if one.eval_policy is not None:
        raise UserError(f"{where}: groups.{name}.eval_policy={one.eval_policy} plays all of the group's agents then")
    if n_agents == 1:
        raise UserError(f"{where}: the group has one agent; groups.OTHER.eval_policy says who plays another group")


def sizes(group: Any) -> tuple:
    """What a policy must agree with: agents, features, kind and size of the actions."""
    action = group.action
    size = (action.n_continuous, *action.nvec) if action.kind == "hybrid" else action.nvec or action.size
    return group.n_agents, group.observation_size, action.kind, size


def algorithms(algo: A, settings: Mapping[str, GroupSettings]) -> dict[str, A]:
    """The algorithm of every group that learns, in the environment's order: `algo` with the group's own settings.

    Raises:
        UserError: a key or value that the algorithm has not, or one that all groups must share.
    """
    algos = {}
    known = {each.name for each in fields(algo)}
    for name, one in settings.items():
        if not one.learns:
            continue
        changes = one.algo
        if not isinstance(algo, Algorithm):  # a saved policy needs what shapes the networks, and nothing else
            changes = {key: value for key, value in changes.items() if key in known}
        else:
            for key in [key for key in algo.common if key in changes]:
                raise UserError(f"groups.{name}.algo.{key}: all groups share one loop; set algo.{key} instead")
            check_arguments(type(algo), changes, f"groups.{name}.algo")
        algos[name] = replace(algo, **changes) if changes else algo
    return algos


def source(settings: Mapping[str, GroupSettings], name: str) -> str:
    """The group whose actor plays the group `name`: another one's where its past versions do."""
    return settings[name].of or name if settings[name].policy == POOL else name


def everyone(
    settings: Mapping[str, GroupSettings], actors: Mapping[str, Any], critics: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Actors and critics of all groups: who plays against past versions of another plays itself here.

    Raises:
        UserError: a group is played by something that is no actor of this run.
    """
    whose = {name: source(settings, name) for name in settings}
    for name in [name for name, of in whose.items() if of not in actors]:
        raise UserError(
            f"group {name} is played by groups.{name}.policy={settings[name].policy}, which is no policy of this run"
        )
    judges = {name: critics[of] for name, of in whose.items() if of in critics}
    return {name: actors[of] for name, of in whose.items()}, judges


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
