"""What the numbers of observations and actions are called where people look at them: "goal x", "lidar 3", "force y".

A VMAS scenario joins plain tensors, so that its features have no names. They are found: each number of the simulator's
state and each ray is moved a little, one after the other, and what changes in the observation is named after it. What
depends on more than two numbers, or on none, keeps its index.

Shapes: K numbers that are moved; A agents, F features, D numbers of an action.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.grouping import prefix_of
from envs.observation_parts import WHOLE
from envs.rng import Stream
from envs.spec import GroupSpec
from envs.vmas.world import VmasWorld

NUDGE = 0.01  # metres, radians and the like: small beside what agents see, large beside float32's rounding
CHANGED = 1e-3  # of NUDGE: what changes less does not depend on it
MOST = 3000  # observations of single agents that are asked for: beyond, nothing is named, as it would take too long
WORDS = {"pos": "{}", "vel": "velocity {}", "force": "force {}", "rot": "angle", "ang_vel": "angular velocity",
         "torque": "torque", "c": "word {}"}  # fmt: skip
ACTIONS = {  # by the name of the class that turns an action into forces
    "Holonomic": ("force x", "force y"),
    "HolonomicWithRotation": ("force x", "force y", "torque"),
    "Rotation": ("torque",),
    "Forward": ("force ahead",),
    "DiffDrive": ("speed", "turn rate"),
    "KinematicBicycle": ("speed", "steering angle"),
    "Drone": ("thrust", "torque x", "torque y", "torque z"),
}


class Source(NamedTuple):
    """A number that an observation may show: of a thing's state (what: "pos"), or of an agent's sensor (its number)."""

    thing: str
    what: str | int
    axis: int
    word: str  # what it is called: "velocity x", "lidar 3"


class Meaning(NamedTuple):
    """What a feature shows of which things beside the agent itself; two: the first as seen from the second.

    relative: of one thing, as seen from the agent.
    """

    things: tuple[str, ...]
    word: str
    relative: bool = False


def observation_labels(world: VmasWorld) -> dict[str, list[list[str]]]:
    """{group: of each of its A agents F names}. The world's state is moved and put back; its streams stay as they are.

    The observation is asked for once per number of the state: after a reset, before the next.
    """
    sources = _sources(world.simulator)
    found: dict[str, list[list[str | None]]] = {}
    calls = -(-len(sources) // world.num_envs) * len(world.simulator.agents)
    if 0 < calls <= MOST:
        everyone = [agent.name for agent in world.simulator.agents]
        for name, change in _changes(world, sources).items():
            agents = world.spec.groups[name].agents
            found[name] = [_named(agent, change[:, i], sources, everyone) for i, agent in enumerate(agents)]
    return {name: [_joined(group, row) for row in found.get(name, [[]] * group.n_agents)]
            for name, group in world.spec.groups.items()}  # fmt: skip


def action_labels(world: VmasWorld) -> dict[str, list[list[str]]]:
    """{group: of each of its A agents D names}; an index where there is no name."""
    by_name = {agent.name: agent for agent in world.simulator.agents}
    return {name: [_actions(by_name[agent], group) for agent in group.agents]
            for name, group in world.spec.groups.items()}  # fmt: skip


def _actions(agent: Any, group: GroupSpec) -> list[str]:
    D = group.action.size
    if group.action.kind == "discrete":
        return ["choice"]
    moves = list(ACTIONS.get(type(agent.dynamics).__name__, ()))
    if len(moves) != len(agent.action.u_range_tensor):
        moves = [str(i) for i in range(len(agent.action.u_range_tensor))]
    talks = D - len(moves)
    return moves[:D] + (["word"] if talks == 1 else [f"word {i}" for i in range(talks)])


def _sources(simulator: Any) -> list[Source]:
    """Every number of the things' states and every ray."""
    state = [
        Source(entity.name, what, axis, word.format(axis if what == "c" else "xyz"[min(axis, 2)]))
        for entity in simulator.world.entities
        for what, word in WORDS.items()
        if isinstance(value := getattr(entity.state, what, None), Tensor)
        for axis in range(value.shape[-1])
    ]
    for agent in simulator.world.agents:
        for k, sensor in enumerate(agent.sensors or ()):
            kind = type(sensor).__name__.lower() + (f" {k}." if len(agent.sensors) > 1 else " ")
            state += [Source(agent.name, k, i, f"{kind}{i}") for i in range(sensor.measure().shape[-1])]
    return state


def _changes(world: VmasWorld, sources: Sequence[Source]) -> dict[str, Tensor]:
    """{group: float32 [K, A, F]}: by how much of the nudge features change with each source."""
    simulator = world.simulator
    scenario, things = simulator.scenario, {entity.name: entity for entity in simulator.world.entities}
    sensors = {(a.name, k): sensor for a in simulator.world.agents for k, sensor in enumerate(a.sensors or ())}
    measured = {key: sensor.measure() for key, sensor in sensors.items()}
    states = {(s.thing, s.what): getattr(things[s.thing].state, s.what) for s in sources if isinstance(s.what, str)}
    values = {**states, **measured}

    def put(changed: dict[tuple, Tensor]) -> None:
        for (thing, what), value in changed.items():
            if isinstance(what, str):
                setattr(things[thing].state, what, value)
            else:
                measured[thing, what] = value

    def observe() -> dict[str, Tensor]:
        with Stream(0, world.device):  # noise is the same each time
            return world.observe(simulator, [scenario.observation(agent) for agent in simulator.agents])

    changes = []
    for key, sensor in sensors.items():  # a ray is a number of its own: it does not follow what is moved
        sensor.measure = lambda *_, key=key, **__: measured[key]
    try:
        before = observe()
        for first in range(0, len(sources), world.num_envs):
            moved = sources[first : first + world.num_envs]
            changed = {(s.thing, s.what): values[s.thing, s.what].clone() for s in moved}
            for e, source in enumerate(moved):
                changed[source.thing, source.what][e, source.axis] += NUDGE
            put(changed)
            seen = observe()
            put({key: values[key] for key in changed})
            changes.append({name: (seen[name] - before[name])[: len(moved)] / NUDGE for name in world.spec.groups})
    finally:
        put(values)
        for sensor in sensors.values():
            del sensor.measure
    return {name: torch.cat([each[name] for each in changes]) for name in world.spec.groups}


def _named(agent: str, change: Tensor, sources: Sequence[Source], agents: Sequence[str]) -> list[str | None]:
    """A name for each feature of an agent, from its share of `changes`, [K, F]; None where there is none."""
    features = [_meaning(agent, column, sources) for column in change.unbind(1)]
    stems = Counter(prefix_of(thing) for thing in {thing for each in features if each for thing in each.things})

    def called(thing: str) -> str:  # without a number that tells nothing apart: "goal 0", where no other goal is seen
        return prefix_of(thing) if stems[prefix_of(thing)] == 1 and thing not in agents else thing

    def name(each: Meaning, relative: str = "") -> str:
        return " ".join(filter(None, (" from ".join(map(called, each.things)), relative, each.word)))

    absolute = {name(each) for each in features if each and not each.relative}
    return _distinct([
        each and name(each, "relative" if each.relative and name(each) in absolute else "") for each in features
    ])  # fmt: skip


def _meaning(agent: str, column: Tensor, sources: Sequence[Source]) -> Meaning | None:
    """What a feature shows that changes by `column` [K] with the sources."""
    shown = (column.abs() > CHANGED).nonzero().flatten().tolist()
    moving = [sources[k] for k in shown]
    if len(moving) == 1:
        return Meaning(tuple(s.thing for s in moving if s.thing != agent), moving[0].word)
    if len(moving) != 2 or moving[0][1:] != moving[1][1:] or abs(float(column[shown].sum())) > 0.05:
        return None
    others = [source.thing for source in moving if source.thing != agent]
    if len(others) == 2 and column[shown[0]] < 0:
        others.reverse()
    return Meaning(tuple(others), moving[0].word, len(others) == 1)


def _distinct(names: list[str | None]) -> list[str | None]:
    """Names that stand for several features, numbered."""
    several = {name for name, count in Counter(names).items() if name and count > 1}
    numbers = {name: itertools.count(1) for name in several}
    return [f"{name} {next(numbers[name])}" if name in several else name for name in names]


def _joined(group: GroupSpec, found: Sequence[str | None]) -> list[str]:
    """F names of one agent: those of the scenario's own parts, else those that were found, else indexes."""
    names = [name or str(i) for i, name in enumerate(found)] or [str(i) for i in range(group.observation_size)]
    first = 0
    for part in group.parts:
        if part.name != WHOLE:
            places = [".".join(map(str, at)) for at in itertools.product(*map(range, part.shape))]
            called = part.name.replace(".", " ").replace("_", " ")
            names[first : first + part.size] = [called] if part.size == 1 else [f"{called} {at}" for at in places]
        first += part.size
    return names
