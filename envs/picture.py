"""A picture of one VMAS environment, drawn with matplotlib from the shapes of its entities: no OpenGL, no display."""

from __future__ import annotations

import math

import matplotlib.patches as patches
from matplotlib.axes import Axes
from vmas.simulator.core import Box, Entity, Line, Sphere
from vmas.simulator.environment import Environment


def draw(axes: Axes, simulator: Environment, index: int = 0, half_width: float = 1.2) -> None:
    """Draw every entity of environment `index` into `axes`, [-half_width, half_width] in metres both ways.

    Landmarks first, agents on top; colours are the scenario's own.
    """
    axes.set(xlim=(-half_width, half_width), ylim=(-half_width, half_width), xticks=[], yticks=[], aspect="equal")
    for entity in (*simulator.world.landmarks, *simulator.world.agents):
        axes.add_patch(_patch(entity, index))


def _patch(entity: Entity, index: int) -> patches.Patch:
    x, y = entity.state.pos[index].tolist()
    angle = entity.state.rot[index].item()
    colour, shape = [float(c) for c in entity.color[:3]], entity.shape
    if isinstance(shape, Sphere):
        return patches.Circle((x, y), shape.radius, facecolor=colour, edgecolor="black", linewidth=0.4)
    if isinstance(shape, Box):
        corner = (x - shape.length / 2, y - shape.width / 2)
        return patches.Rectangle(
            corner, shape.length, shape.width, angle=math.degrees(angle), rotation_point="center",
            facecolor=colour, edgecolor="black", linewidth=0.4,
        )  # fmt: skip
    if isinstance(shape, Line):
        dx, dy = math.cos(angle) * shape.length / 2, math.sin(angle) * shape.length / 2
        return patches.Polygon([(x - dx, y - dy), (x + dx, y + dy)], closed=False, edgecolor=colour, linewidth=2.5)
    raise TypeError(f"entity {entity.name!r} has a shape of type {type(shape).__name__}: Sphere, Box or Line are drawn")
