"""What a page needs to run a scenario by itself: its step as JavaScript, states to start from, how things look.

Shapes: E environments, S fields of the state that the step reads or writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.base import EnvError
from envs.kernel.backends.javascript import emit_js
from envs.kernel.compile import LARGEST
from envs.kernel.ir.layout import Layout, layout
from envs.kernel.ir.lowered_step import Lowered, lower
from envs.kernel.tracing.tape import Refusal
from envs.kernel.tracing.trace import TRACED, trace
from envs.kernel.verification.branches import check_branches
from envs.rendering.feature_labels import action_labels, observation_labels
from envs.rendering.scene import Scene, measure_lidars, scene
from envs.rendering.web_frames import shape_row
from envs.vmas.env import VmasEnv
from envs.vmas.world import VmasWorld

RAYS = "/rays"  # key of all lidars' measurements among the outputs
LOOKS = 3  # states whose pictures are compared: what is drawn identically in all of them stands still
MOVES = ("_pos", "_vel", "_rot", "_ang_vel")


@dataclass
class LiveProgram:
    """A scenario's step as JavaScript, and the Python side that it must equal.

    template: E = TRACED environments, stepped eagerly. places: the order of fields and outputs.
    """

    template: VmasWorld
    lowered: Lowered
    places: Layout
    source: str

    def fields(self, world: VmasWorld | None = None) -> Tensor:
        """The state of a world with these settings as the program reads it, float32 [E, S]."""
        world = world or self.template
        world.pool.main.refresh()
        rows = {p: self._rows(world, p) for p, _ in self.places.fields}
        columns = [rows[path][:, k] for path, k in self.places.fields]
        return torch.stack(columns, 1) if columns else torch.zeros(world.num_envs, 0)

    def tables(self, world: VmasWorld) -> list[Tensor]:
        """The state that the step reads by index, float32 [E, numbers] each."""
        return [self._rows(world, path) for path, _, _ in self.places.tables]

    def _rows(self, world: VmasWorld, path: str) -> Tensor:
        value, axis = world.pool.main.tensors[path].value, self.lowered.shapes[path][2]
        return value.movedim(axis, 0).reshape(world.num_envs, -1).float()

    def check_constants(self, world: VmasWorld) -> None:
        """Raises EnvError if a state differs from what was folded into the program."""
        for (path, k), value in self.lowered.constants.items():
            if path in world.pool.main.tensors and not bool((self._rows(world, path)[:, k] == value).all()):
                raise EnvError(f"the program holds {path} as a constant, and a reset changed it.")


def single(settings: dict[str, Any], **changes: Any) -> VmasEnv:
    """An eager environment for drawing and checking; `changes` override the settings."""
    common = {k: v for k, v in settings.items() if k not in ("num_envs", "fast", "device", "seed", "pool_size")}
    return VmasEnv(**{**common, "fast": "off", "global_state": True, **changes})


def program(settings: dict[str, Any]) -> LiveProgram:
    """Trace, lower and write a scenario's step, with the poses and rays that a page draws among its outputs.

    Raises EnvError with the reason where there can be no such program (docs/kernels.md).
    """
    template = single(settings, num_envs=TRACED, pool_size=64).world

    def rays(simulator: Any) -> dict[str, Tensor]:
        measured = [sensor.measure() for sensor in _sensors(simulator)]
        return {RAYS: torch.cat(measured, -1)} if measured else {}

    try:
        if template.agent_masks is not None:
            raise Refusal("its agents die, end each on its own or may not choose everything")
        if template.shared_draws:
            raise Refusal(f"resets draw {template.shared_draws[0]} once for the whole batch")
        template.observe_more(rays)
        traced = trace(template)
        check_branches(template, traced)
        for key in [k for k in traced.constants if k[1].endswith(MOVES)]:
            del traced.constants[key]  # people drag what otherwise stands still
        lowered = lower(traced)
        if lowered.operations > LARGEST:
            raise Refusal(f"the step has {lowered.operations} operations, more than {LARGEST}")
        places = layout(lowered, template.spec)
        source = emit_js(lowered, places)
    except Refusal as refusal:
        reason = f"{template.scenario!r} can't run as JavaScript: {refusal}"
        raise EnvError(f"{reason}; serve=true runs it in Python.") from None
    return LiveProgram(template, lowered, places, source)


def world(live: LiveProgram, settings: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Everything but the program and the policy, JSON-able: starts by seed, entities, agents, camera, still shapes."""
    env = single(settings, num_envs=1, pool_size=2)
    simulator = env.world.simulator
    starts, scenes = [], []
    for seed in range(seeds):
        observation, state = env.reset(seed)
        live.check_constants(env.world)
        measure_lidars(simulator)
        starts.append(
            {
                "s": _numbers(live.fields(env.world)[0]),
                "T": [_numbers(t[0]) for t in live.tables(env.world)],
                "o": {name: _numbers(v[0]) for name, v in observation.items()},
                "state": _numbers(state[0]),
                "rays": [r for sensor in _sensors(simulator) for r in _numbers(sensor._last_measurement[0])],
            }
        )
        if seed < LOOKS:
            scenes.append(scene(simulator))
    for _ in range(5):
        env.step(env.random_action(torch.Generator().manual_seed(0)))
    scenes.append(scene(simulator))
    still = [s for s in scenes[0].shapes if not s.owner and all(_same(s, other) for other in scenes[1:])]
    bodies = {s.owner: s for s in scenes[0].shapes if s.layer == "body" and s.owner}
    field = {key: i for i, key in enumerate(live.places.fields)}
    return {
        "scenario": env.scenario,
        "dt": simulator.world.dt,
        "max_steps": env.spec.max_steps,
        "starts": starts,
        "camera": camera(simulator),
        "still": [shape_row(s) for s in still],
        "left_out": sum(not s.owner for s in scenes[0].shapes) - len(still),
        "entities": [
            _entity(entity, path, bodies.get(entity.name), field)
            for entity, path in zip(simulator.world.entities, _paths(simulator), strict=True)
        ],
        "sensors": [_sensor(agent, sensor) for agent in simulator.world.agents for sensor in agent.sensors or ()],
        "seeds": seeds,
        "groups": groups(env.world),
    }


def groups(world: VmasWorld) -> dict[str, Any]:
    """{group: agents, sizes, names of features and of actions' numbers by agent, actions}.

    parts: a discrete action's index is their product's.
    """
    by_name = {agent.name: agent for agent in world.simulator.agents}
    observed, acted = observation_labels(world), action_labels(world)
    out = {}
    for name, g in world.spec.groups.items():
        first, a = by_name[g.agents[0]], g.action
        talks = world.simulator.world.dim_c if not first.silent else 0
        out[name] = {
            "agents": list(g.agents),
            "F": g.observation_size,
            "names": observed[name],
            "actions": acted[name],
            "D": a.size,
            "kind": a.kind,
            "nvec": list(a.nvec),
            "parts": [*first.discrete_action_nvec, *([talks] if talks else [])],
            "low": None if a.low is None else a.low.tolist(),
            "high": None if a.high is None else a.high.tolist(),
        }
    return out


def camera(simulator: Any) -> dict[str, Any]:
    """What VMAS's window shows: its size in pixels, zoom, origin, and the largest agent (it zooms out to fit them)."""
    s = simulator.scenario
    radius = max(agent.shape.circumscribed_radius() for agent in simulator.world.agents)
    return {
        "width": s.viewer_size[0],
        "height": s.viewer_size[1],
        "zoom": float(s.viewer_zoom),
        "origin": [float(c) for c in s.render_origin],
        "radius": float(radius),
    }


def _sensors(simulator: Any) -> list[Any]:
    return [sensor for agent in simulator.world.agents for sensor in agent.sensors or ()]


def _same(shape: Any, drawn: Scene) -> bool:
    return any(
        shape.kind == o.kind
        and shape.points == o.points
        and shape.matrix == o.matrix
        and shape.colour == o.colour
        and shape.text == o.text
        and shape.image is None
        for o in drawn.shapes
    )


def _paths(simulator: Any) -> list[str]:
    """The path of each entity's state in the simulator, in the order of `world.entities`."""
    w = simulator.world
    return [f"world._landmarks.{i}" for i in range(len(w.landmarks))] + [
        f"world._agents.{i}" for i in range(len(w.agents))
    ]


def _entity(entity: Any, path: str, body: Any, field: dict[tuple[str, int], int]) -> dict[str, Any]:
    at = {
        name: [field.get((f"{path}._state.{name}", k)) for k in range(2 if name in ("_pos", "_vel") else 1)]
        for name in MOVES
    }
    look = shape_row(body) if body is not None else None
    return {
        "name": entity.name,
        "radius": float(entity.shape.circumscribed_radius()),
        "look": look,
        "pos": at["_pos"],
        "vel": at["_vel"],
        "rot": at["_rot"][0],
        "ang_vel": at["_ang_vel"][0],
    }


def _sensor(agent: Any, sensor: Any) -> dict[str, Any]:
    angles = getattr(sensor, "_angles", None)
    return {
        "agent": agent.name,
        "angles": [] if angles is None else _numbers(angles[0]),
        "colour": list(sensor.render_color),
        "alpha": float(sensor.alpha),
        "shown": bool(sensor._render),
    }


def _numbers(values: Tensor) -> list[float]:
    return [float(f"{v:.9g}") for v in values.detach().flatten().float().tolist()]
