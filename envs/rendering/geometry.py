"""VMAS's drawing vocabulary without OpenGL: stand-ins for `vmas.simulator.rendering` that write down what they draw.

A scenario draws by making geometries (polygons, lines, circles, text) with transforms and colours. Under
`envs.rendering.viewer.recording` the names it imports are these, so every scenario's own drawing code runs unchanged,
and nothing needs a display.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

FIRST_WIDTH = 2.0  # pixels; OpenGL's line width before anything sets it, as VMAS's viewer does
Matrix = tuple[float, float, float, float, float, float]  # a, b, c, d, e, f: x' = a x + c y + e, y' = b x + d y + f
IDENTITY: Matrix = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)


@dataclass(slots=True)
class Shape:
    """One thing drawn.

    kind: "fill" (polygon with a border), "plain" (polygon without), "line" (open), "loop" (closed), "text", "image".
    points: corners in the shape's own coordinates; text: its place in pixels from the lower left; image: the lower
    left and the upper right. matrix: from there to metres. colour: r, g, b, alpha in 0 to 1. width: of lines, pixels.
    layer: "body", "sensor", "action", "extra", "grid" or "text". owner: the entity's name, "" for the scenario's own.
    """

    kind: str
    points: tuple[tuple[float, float], ...]
    matrix: Matrix
    colour: tuple[float, float, float, float]
    width: float = 1.0
    layer: str = "extra"
    owner: str = ""
    text: str = ""
    image: np.ndarray | None = None  # uint8 [H, W, 4], the first row lowest


def _times(m: Matrix, n: Matrix) -> Matrix:
    """m after n."""
    a, b, c, d, e, f = m
    g, h, i, j, k, o = n
    return (a * g + c * h, b * g + d * h, a * i + c * j, b * i + d * j, a * k + c * o + e, b * k + d * o + f)


def _pairs(points: Sequence) -> tuple[tuple[float, float], ...]:
    rows = points.tolist() if hasattr(points, "tolist") else points  # at once: numbers of a tensor one by one are slow
    return tuple((float(p[0]), float(p[1])) for p in rows)


class Attr:
    """Base of what modifies a geometry."""


class Transform(Attr):
    """Scale, then rotate, then move."""

    def __init__(self, translation=(0.0, 0.0), rotation=0.0, scale=(1, 1)) -> None:
        self.set_translation(*translation)
        self.set_rotation(rotation)
        self.set_scale(*scale)

    def set_translation(self, newx, newy) -> None:
        self.translation = (float(newx), float(newy))

    def set_rotation(self, new) -> None:
        self.rotation = float(new)

    def set_scale(self, newx, newy) -> None:
        self.scale = (float(newx), float(newy))

    @property
    def matrix(self) -> Matrix:
        c, s, (x, y) = math.cos(self.rotation), math.sin(self.rotation), self.scale
        return (c * x, s * x, -s * y, c * y, *self.translation)


class Color(Attr):
    def __init__(self, vec4) -> None:
        self.vec4 = vec4


class LineStyle(Attr):
    def __init__(self, style) -> None:
        self.style = style  # dashes: drawn as a whole line


class LineWidth(Attr):
    def __init__(self, stroke) -> None:
        self.stroke = stroke


class Geom:
    """Base: a colour, attributes, and `shapes`, what it draws under a transform."""

    def __init__(self) -> None:
        self._color = Color((0, 0, 0, 1.0))
        self.attrs: list[Attr] = [self._color]

    def add_attr(self, attr: Attr) -> None:
        self.attrs.append(attr)

    def set_color(self, r, g, b, alpha=1) -> None:
        self._color.vec4 = (r, g, b, alpha)

    def shapes(self, pen: Pen, outer: Matrix = IDENTITY) -> Iterator[Shape]:
        """The shapes, OpenGL's way: the last attribute is the outermost, and a line width stays until it is changed."""
        matrix, outer_colour = outer, pen.colour
        for attr in reversed(self.attrs):
            if isinstance(attr, Transform):
                matrix = _times(matrix, attr.matrix)
            elif isinstance(attr, LineWidth):
                pen.width = max(float(attr.stroke), 1.0)
            elif isinstance(attr, Color):
                pen.colour = tuple(min(max(float(c), 0.0), 1.0) for c in attr.vec4)
        yield from self.draw(pen, matrix)
        pen.colour = outer_colour

    def draw(self, pen: Pen, matrix: Matrix) -> Iterator[Shape]:
        raise NotImplementedError(f"{type(self).__name__} can't be drawn")


@dataclass
class Pen:
    """OpenGL's current colour and line width."""

    colour: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)
    width: float = FIRST_WIDTH


class FilledPolygon(Geom):
    def __init__(self, v, draw_border=True) -> None:
        super().__init__()
        self.v, self.draw_border = v, draw_border

    def draw(self, pen, matrix):
        yield Shape("fill" if self.draw_border else "plain", _pairs(self.v), matrix, pen.colour, pen.width)


class PolyLine(Geom):
    def __init__(self, v, close) -> None:
        super().__init__()
        self.v, self.close = v, close
        self.linewidth = LineWidth(1)
        self.add_attr(self.linewidth)

    def set_linewidth(self, x) -> None:
        self.linewidth.stroke = x

    def draw(self, pen, matrix):
        yield Shape("loop" if self.close else "line", _pairs(self.v), matrix, pen.colour, pen.width)


class Line(PolyLine):
    def __init__(self, start=(0.0, 0.0), end=(0.0, 0.0), width=1) -> None:
        super().__init__((start, end), False)
        self.start, self.end = start, end
        self.linewidth.stroke = width

    def draw(self, pen, matrix):
        yield Shape("line", _pairs((self.start, self.end)), matrix, pen.colour, pen.width)


class Point(Geom):
    def draw(self, pen, matrix):
        yield Shape("line", ((0.0, 0.0), (0.0, 0.0)), matrix, pen.colour, pen.width)


class Grid(Geom):
    def __init__(self, spacing=0.1, length=50, width=0.5) -> None:
        super().__init__()
        self.spacing, self.length = spacing, length
        self.linewidth = LineWidth(width)
        self.add_attr(self.linewidth)

    def draw(self, pen, matrix):
        half = self.length / 2
        for at in np.arange(-half, half, self.spacing).tolist():
            for points in (((at, -half), (at, half)), ((-half, at), (half, at))):
                yield Shape("line", points, matrix, pen.colour, pen.width, layer="grid")


class Compound(Geom):
    def __init__(self, gs) -> None:
        super().__init__()
        self.gs = gs
        for g in gs:
            g.attrs = [a for a in g.attrs if not isinstance(a, Color)]

    def draw(self, pen, matrix):
        for g in self.gs:
            yield from g.shapes(pen, matrix)


class TextLine(Geom):
    def __init__(self, text="", font_size=15, x=0.0, y=0.0) -> None:
        super().__init__()
        self.text, self.font_size, self.x, self.y = text, font_size, float(x), float(y)

    def set_text(self, text, font_size=None) -> None:
        self.text = text
        self.font_size = self.font_size if font_size is None else font_size

    def draw(self, pen, matrix):
        size = float(self.font_size)
        yield Shape("text", ((self.x, self.y),), matrix, (0.0, 0.0, 0.0, 1.0), size, "text", text=str(self.text))


class Image(Geom):
    def __init__(self, img, x, y, scale) -> None:
        super().__init__()
        self.img, self.x, self.y, self.scale = np.asarray(img).astype(np.uint8), x, y, scale

    def draw(self, pen, matrix):
        h, w = self.img.shape[:2]
        corners = _pairs(((self.x, self.y), (self.x + w * self.scale, self.y + h * self.scale)))
        yield Shape("image", corners, matrix, (1.0, 1.0, 1.0, 1.0), image=self.img)


def make_circle(radius=10, res=30, filled=True, angle=2 * math.pi):
    return make_ellipse(radius, radius, res, filled, angle)


def make_ellipse(radius_x=10, radius_y=5, res=30, filled=True, angle=2 * math.pi):
    turns = [-angle / 2 + angle * i / res for i in range(res)]
    points = [(math.cos(t) * radius_x, math.sin(t) * radius_y) for t in turns]
    if angle % (2 * math.pi) != 0:
        points.append((0, 0))
    return make_polygon(points, filled)


def make_polygon(v, filled=True, draw_border=True):
    return FilledPolygon(v, draw_border) if filled else PolyLine(v, True)


def make_polyline(v):
    return PolyLine(v, False)


def make_capsule(length, width):
    box = make_polygon([(0, -width / 2), (0, width / 2), (length, width / 2), (length, -width / 2)])
    ends = [make_circle(width / 2), make_circle(width / 2)]
    ends[1].add_attr(Transform(translation=(length, 0)))
    return Compound([box, *ends])


def render_function_util(
    f: Callable, plot_range, precision=0.01, cmap_range=None, cmap_alpha=1.0, cmap_name="viridis"
) -> Image:
    """A function of the position as an image: f maps float [N, 2] to [N], [N, 1] (a colour map's) or [N, 4]."""
    from matplotlib import colormaps

    span = (plot_range, plot_range) if isinstance(plot_range, (int, float)) else plot_range
    (x0, x1), (y0, y1) = ((-s, s) if isinstance(s, (int, float)) else s for s in span)
    xs, ys = np.arange(x0, x1, precision), np.arange(y0, y1, precision)
    y, x = np.meshgrid(ys, xs)
    out = f(np.stack((x, y), -1).reshape(-1, 2))
    out = np.asarray(out.detach().cpu() if hasattr(out, "detach") else out, dtype=float)
    if out.ndim == 1 or out.shape[1] == 1:
        out = out.reshape(-1)
        low, high = cmap_range or (None, None)
        low, high = out.min() if low is None else low, out.max() if high is None else high
        part = (out.clip(low, high) - low) / (high - low) if high - low > 1e-5 else out.clip(0, 1)
        out = colormaps[cmap_name](part)
        out[:, 3] = cmap_alpha
    picture = out.reshape(len(xs), len(ys), 4).transpose(1, 0, 2) * 255
    return Image(picture, x=x0, y=y0, scale=precision)
