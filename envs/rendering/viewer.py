"""Stands where VMAS's window stands: takes a frame's geometries and gives their shapes instead of pixels."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from envs.rendering import geometry
from envs.rendering.geometry import Geom, Pen, Shape

MODULE = "vmas.simulator.rendering"


class Viewer:
    """Stands where VMAS's window stands: takes the bounds and geometries of a frame, gives their shapes."""

    def __init__(self, width, height, display=None, visible=True) -> None:
        self.width, self.height = width, height
        self.geoms: list[Geom] = []
        self.onetime_geoms: list[tuple[str, Geom]] = []
        self.bounds: tuple[float, float, float, float] = (-1.0, 1.0, -1.0, 1.0)
        self.owners: list[Any] = []  # whose geometries the next calls of add_onetime_list bring; None: the scenario's

    def set_bounds(self, left, right, bottom, top) -> None:
        self.bounds = (float(left), float(right), float(bottom), float(top))

    def add_geom(self, geom: Geom) -> None:
        self.geoms.append(geom)

    def add_onetime(self, geom: Geom) -> None:
        self.onetime_geoms.append(("", geom))

    def add_onetime_list(self, geoms: Sequence[Geom]) -> None:
        owner = self.owners.pop(0) if self.owners else None
        self.onetime_geoms += [(owner, geom) for geom in geoms]

    def render(self, return_rgb_array=False) -> list[Shape]:
        pen, out, seen = Pen(), [], set()
        for owner, geom in [("", g) for g in self.geoms] + self.onetime_geoms:
            for shape in geom.shapes(pen):
                if owner and shape.layer == "extra":
                    first = owner not in seen
                    shape.owner, shape.layer = owner, "body" if first else "sensor"
                    seen.add(owner)
                out.append(shape)
        self.onetime_geoms = []
        return [s for s in out if s.kind != "text"] + [s for s in out if s.kind == "text"]


@contextmanager
def recording() -> Iterator[None]:
    """Within it `from vmas.simulator import rendering` gives the stand-ins of `envs.rendering.geometry` and the Viewer
    above."""
    import vmas.simulator as package

    stand_in = types.ModuleType(MODULE)
    stand_in.__dict__.update({k: v for k, v in vars(geometry).items() if not k.startswith("_")})
    stand_in.Viewer = Viewer
    known, attribute = sys.modules.get(MODULE), vars(package).get("rendering")
    sys.modules[MODULE] = package.rendering = stand_in
    try:
        yield
    finally:
        if known is None:
            sys.modules.pop(MODULE, None)
        else:
            sys.modules[MODULE] = known
        if attribute is None:
            del package.rendering
        else:
            package.rendering = attribute
