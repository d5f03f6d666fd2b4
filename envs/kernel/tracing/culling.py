"""Tells the trace which bodies are too far apart to matter, so that a kernel can skip their contacts and lidar rays.

VMAS skips a pair of bodies where no environment of the batch has them close. Here each pair's force becomes
`where(near, force, 0)`: the force is zero beyond that distance anyway, so no value changes, but the conditions let the
scheduler leave out a pair's whole computation where it is far apart in a block of environments.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.core import World
from vmas.simulator.utils import LINE_MIN_DIST

MARGIN = 2 * LINE_MIN_DIST + 1e-3  # contacts begin up to LINE_MIN_DIST before surfaces touch


def _near(a: Tensor, b: Tensor, reach) -> Tensor:
    """bool [E, …]: not farther apart than reach; nan counts as near."""
    apart = a - b
    return ~((apart * apart).sum(-1) > reach * reach)


@contextmanager
def culling(world: Any) -> Iterator[None]:
    """Within it, a world's forces and lidars carry their conditions; worlds that override them are left alone."""
    original = dict(vars(world))
    if type(world).update_env_forces is World.update_env_forces:
        _cull_forces(world)
    for name, cull in (
        ("_cast_rays_to_sphere", _cull_spheres),
        ("_cast_rays_to_box", _cull_boxes),
        ("_cast_rays_to_line", _cull_lines),
    ):
        if getattr(type(world), name, None) is getattr(World, name, None):
            setattr(world, name, types.MethodType(cull, world))
    try:
        yield
    finally:
        for name in (
            "update_env_forces",
            "_vectorized_joint_constraints",
            "_cast_rays_to_sphere",
            "_cast_rays_to_box",
            "_cast_rays_to_line",
        ):
            if name in vars(world) and name not in original:
                delattr(world, name)


def _cull_forces(world: Any) -> None:
    inside_joints = False

    def joints(self: Any, constraints: list) -> None:
        nonlocal inside_joints
        inside_joints = True  # joints pull from any distance
        try:
            type(self)._vectorized_joint_constraints(self, constraints)
        finally:
            inside_joints = False

    def update(self: Any, a: Any, force_a, torque_a, b: Any, force_b, torque_b) -> None:
        if not inside_joints:
            reach = a.shape.circumscribed_radius() + b.shape.circumscribed_radius() + MARGIN
            near = _near(a.state.pos, b.state.pos, reach).unsqueeze(-1)
            force_a, torque_a, force_b, torque_b = (
                torch.where(near, x, 0.0) if isinstance(x, Tensor) else x
                for x in (force_a, torque_a, force_b, torque_b)
            )
        type(self).update_env_forces(self, a, force_a, torque_a, b, force_b, torque_b)

    world._vectorized_joint_constraints = types.MethodType(joints, world)
    world.update_env_forces = types.MethodType(update, world)


def _limit(position: Tensor, origin: Tensor, radius, max_range: float, distances: Tensor) -> Tensor:
    """[E, bodies, rays]: a body beyond the lidar's range can't shorten a ray."""
    near = _near(position, origin.unsqueeze(-2), radius + (max_range + MARGIN))
    return torch.where(near.unsqueeze(-1), distances, max_range)


def _cull_spheres(self: Any, position, radius, origin, direction, max_range):
    distances = World._cast_rays_to_sphere(self, position, radius, origin, direction, max_range)
    return _limit(position, origin, radius, max_range, distances)


def _cull_boxes(self: Any, position, rotation, length, width, origin, direction, max_range):
    distances = World._cast_rays_to_box(self, position, rotation, length, width, origin, direction, max_range)
    return _limit(position, origin, (length + width) / 2, max_range, distances)


def _cull_lines(self: Any, position, rotation, length, origin, direction, max_range):
    distances = World._cast_rays_to_line(self, position, rotation, length, origin, direction, max_range)
    return _limit(position, origin, length / 2, max_range, distances)
