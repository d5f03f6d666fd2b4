"""Pictures of VMAS environments without OpenGL: a scene of shapes from the simulator's own drawing code, and pixels.

Units: metres in the world, pixels of VMAS's window (`viewer_size`) for line widths and text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from envs.rendering.geometry import Shape
from envs.rendering.viewer import recording
from marl.core.look.tokens import LIGHT

SMOOTH = 3  # drawn that much larger and then averaged: smooth edges


@dataclass
class Scene:
    """One frame: `width` x `height` pixels that show `bounds` (left, right, bottom, top, metres), back to front."""

    width: int
    height: int
    bounds: tuple[float, float, float, float]
    shapes: list[Shape] = field(default_factory=list)


def scene(simulator: Any, index: int = 0, measure: bool = False) -> Scene:
    """What VMAS's window would show of environment `index`: the simulator's own `render`, drawn into a list.

    measure: cast the lidars' rays again, for a state that was put there and not stepped to.
    """
    saved = {name: getattr(simulator, name, None) for name in ("viewer", "headless", "visible_display", "text_lines")}
    with recording():
        if measure:
            measure_lidars(simulator)
        try:
            simulator.visible_display, simulator.headless = False, True
            simulator._init_rendering()
            viewer = simulator.viewer
            viewer.owners = [None, *(entity.name for entity in simulator.world.entities)]
            shapes = simulator.render("rgb_array", env_index=index)
        finally:
            for name, value in saved.items():
                setattr(simulator, name, value)
    arrows = {agent.name for agent in simulator.world.agents if agent._render_action}
    for shape, after in zip(shapes, [*shapes[1:], None], strict=True):
        last = after is None or after.owner != shape.owner
        if shape.layer == "sensor" and last and shape.owner in arrows:
            shape.layer = "action"  # VMAS appends it to what the agent's sensors draw
    return Scene(int(viewer.width), int(viewer.height), viewer.bounds, shapes)


def measure_lidars(simulator: Any) -> None:
    """Cast every sensor's rays from the state as it is; observations that step a kernel leave them behind."""
    for agent in simulator.world.agents:
        for sensor in agent.sensors or ():
            sensor.measure()


def image(drawn: Scene, width: int | None = None, hide: frozenset[str] = frozenset()) -> np.ndarray:
    """A scene's pixels, uint8 [height, width, 3]. width: in pixels, null: the scene's own. hide: layers left out."""
    scale = (width or drawn.width) / drawn.width
    size = (round(drawn.width * scale), round(drawn.height * scale))
    zoom = scale * SMOOTH
    canvas = Image.new("RGB", (size[0] * SMOOTH, size[1] * SMOOTH), LIGHT["stage"])
    pen = ImageDraw.Draw(canvas, "RGBA")
    left, right, bottom, top = drawn.bounds
    across, up = canvas.width / (right - left), canvas.height / (top - bottom)
    for shape in drawn.shapes:
        if shape.layer in hide:
            continue
        if shape.kind == "text":
            _text(pen, canvas.height, shape, zoom)
            continue
        a, b, c, d, e, f = shape.matrix
        # Pillow's whole numbers are the middles of pixels, OpenGL's their corners
        spots = [
            ((a * x + c * y + e - left) * across - 0.5, canvas.height - (b * x + d * y + f - bottom) * up - 0.5)
            for x, y in shape.points
        ]
        _shape(canvas, pen, shape, spots, zoom)
    return np.asarray(canvas.resize(size, Image.Resampling.BOX))


def _shape(canvas: Image.Image, pen: ImageDraw.ImageDraw, shape: Shape, spots: list, zoom: float) -> None:
    if not all(math.isfinite(v) for spot in spots for v in spot):
        return  # a simulation that has blown up draws nothing there
    colour, width = _rgba(shape.colour), max(1, round(shape.width * zoom))
    if shape.kind == "image":
        (x0, y1), (x1, y0) = spots
        small = Image.fromarray(shape.image[::-1].copy(), "RGBA")
        small = small.resize((max(1, round(x1 - x0)), max(1, round(y1 - y0))), Image.Resampling.NEAREST)
        canvas.paste(small, (round(x0), round(y0)), small)
    elif shape.kind in ("fill", "plain"):
        pen.polygon(spots, fill=colour)
        if shape.kind == "fill":
            pen.line([*spots, spots[0]], fill=_rgba([c * 0.5 for c in shape.colour]), width=width)
    else:
        pen.line([*spots, spots[0]] if shape.kind == "loop" else spots, fill=colour, width=width)


def _rgba(colour: Any) -> tuple[int, ...]:
    return tuple(round(255 * c) for c in colour)


def _text(pen: ImageDraw.ImageDraw, height: int, shape: Shape, zoom: float) -> None:
    (x, y), (a, b, c, d, e, f) = shape.points[0], shape.matrix
    place = ((a * x + c * y + e) * zoom, height - (b * x + d * y + f) * zoom)
    pen.text(place, shape.text, fill=LIGHT["ink"], anchor="lb", font=_font(max(1, round(shape.width * 96 / 72 * zoom))))


@lru_cache
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), pixels)  # comes with matplotlib
