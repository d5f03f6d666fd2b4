"""A recording's pictures as data for a web page: shapes once each, frames as lists of them.

A shape is a row [kind, points, pose, colour, width, layer, owner, text or image]: `pose` is [x, y, angle], or six
numbers where the shape is scaled; an image is a PNG in a data URI.
"""

from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

from PIL import Image
from torch import Tensor

from envs.rendering.feature_labels import action_labels, observation_labels
from envs.rendering.geometry import Shape
from envs.rendering.recording import Recording, Restorer

DIGITS = 4  # after the point, metres: a tenth of a millimetre


def _round(values: Any, digits: int = DIGITS) -> list[float]:
    return [round(float(v), digits) + 0.0 if math.isfinite(v) else 0.0 for v in values]


def shape_row(shape: Shape) -> list[Any]:
    """A shape as JSON."""
    a, b, c, d, e, f = shape.matrix
    rigid = abs(a - d) + abs(b + c) + abs(a * d - b * c - 1) < 1e-6
    pose = _round((e, f, math.atan2(b, a))) if rigid else _round(shape.matrix, 6)
    extra = shape.text
    if shape.image is not None:
        file = io.BytesIO()
        Image.fromarray(shape.image[::-1].copy(), "RGBA").quantize(64).save(file, "PNG", optimize=True)
        extra = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    points = [number for point in shape.points for number in _round(point)]
    return [shape.kind, points, pose, _round(shape.colour, 3), round(shape.width, 2), shape.layer, shape.owner, extra]


def web_frames(recording: Recording, episodes: list[int] | None = None) -> dict[str, Any]:
    """Everything a player shows, JSON-able: shapes, and per episode its frames, observations, actions, rewards, values.

    names, actions: {group: by agent, what the numbers of its observation and of its action are called}.
    episodes: which; null: all. Observations and the like are rounded to three digits after the point.
    """
    shapes: dict[str, int] = {}
    points: dict[str, int] = {}
    chosen = list(range(recording.episodes)) if episodes is None else episodes
    frames: dict[int, list] = {episode: [] for episode in chosen}
    restorer, size = Restorer(recording), (0, 0)
    for t in range(max(recording.lengths[e] for e in chosen) + 1):
        for episode in (e for e in chosen if t <= recording.lengths[e]):
            drawn = restorer.scene(t, episode)
            size = (drawn.width, drawn.height)
            shape_numbers = []
            for shape in drawn.shapes:
                row = shape_row(shape)
                row[1] = points.setdefault(json.dumps(row[1]), len(points))
                shape_numbers.append(shapes.setdefault(json.dumps(row), len(shapes)))
            frames[episode].append([_round(drawn.bounds), shape_numbers])
    shown = []
    for episode in chosen:
        steps = recording.lengths[episode]
        shown.append(
            {
                "episode": episode,
                "steps": steps,
                "terminated": recording.terminated[episode],
                "frames": frames[episode],
                **{
                    kind: {
                        name: _series(values[:, episode], steps + (kind in ("observation", "value")))
                        for name, values in getattr(recording, kind).items()
                    }
                    for kind in ("observation", "action", "reward", "value")
                },
            }
        )
    return {
        "width": size[0],
        "height": size[1],
        "dt": recording.dt,
        "scenario": recording.settings.get("scenario"),
        "groups": recording.groups,
        "names": observation_labels(restorer.env.world),
        "actions": action_labels(restorer.env.world),
        "note": recording.note,
        "points": [json.loads(p) for p in points],
        "shapes": [json.loads(s) for s in shapes],
        "episodes": shown,
    }


def _series(values: Tensor, count: int) -> list[Any]:
    """[T][A] or [T][A][F] as nested lists, rounded."""
    return (values[:count].double() * 1000).round().div(1000).tolist()
