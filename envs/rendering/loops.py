"""An episode's pictures as a small loop for a web page: what each thing looks like once, and where it is as numbers.

Shapes: F frames. A track holds one number per frame: the first, then the differences to the frame before; where it
never changes, the number alone.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from envs.rendering.recording import Recording, Restorer
from envs.rendering.web_frames import shape_row

UNITS = 2000  # places across the picture
TURN = 500  # angles and matrices: parts of 1
HIDDEN = frozenset({"sensor", "action"})  # rays and arrows would be most of the page
PICTURES = 8  # different images of one thing at most, as of a field of colours that fades

Track = int | list[int]


def loop(recording: Recording, episode: int = 0, most: int = 100) -> dict[str, Any]:
    """An episode's first `most` steps, JSON-able, as `web/gallery.js` plays them.

    Returns:
        {"size": [width, height] of VMAS's window, "dt": seconds per frame, "frames": F, "unit": metres, "bounds": four
        tracks in units (left, right, bottom, top), "looks": rows [kind, points, colour, width, text or image],
        "things": rows [layer, track of looks (-1: not there), tracks of the pose]}. A pose has x and y (units) and an
        angle (1 / TURN), or a matrix (a, b, c, d in 1 / TURN; e, f in units).
    """
    restorer, count = Restorer(recording), min(recording.lengths[episode], most) + 1
    scenes = [restorer.scene(t, episode) for t in range(count)]
    unit = (scenes[0].bounds[1] - scenes[0].bounds[0]) / UNITS
    frames: list[dict[tuple, list]] = []
    for drawn in scenes:
        seen: Counter = Counter()
        rows = {}
        for shape in (shape for shape in drawn.shapes if shape.layer not in HIDDEN):
            row = shape_row(shape)
            key = shape.layer, shape.owner, shape.kind, len(row[2])
            seen[key] += 1
            rows[*key, seen[key]] = row
        frames.append(rows)
    looks: dict[str, int] = {}
    things = []
    for key in dict.fromkeys(key for rows in sorted(frames, key=len, reverse=True) for key in rows):
        rows = _held([rows.get(key) for rows in frames]) if key[2] == "image" else [rows.get(key) for rows in frames]
        numbers = [-1 if row is None else looks.setdefault(_look(row), len(looks)) for row in rows]
        poses, last = [], next(_pose(row, unit) for row in rows if row is not None)
        for row in rows:
            last = last if row is None else _pose(row, unit)
            poses.append(last)
        things.append([key[0], _track(numbers), [_track(list(values)) for values in zip(*poses, strict=True)]])
    bounds = [[round(value / unit) for value in drawn.bounds] for drawn in scenes]
    return {
        "size": [scenes[0].width, scenes[0].height],
        "dt": recording.dt,
        "frames": count,
        "unit": unit,
        "bounds": [_track(list(values)) for values in zip(*bounds, strict=True)],
        "looks": [json.loads(look) for look in looks],
        "things": things,
    }


def _look(row: list[Any]) -> str:
    kind, points, _, colour, width, _, _, extra = row
    return json.dumps([kind, points, [round(part, 2) for part in colour], width, extra])


def _pose(row: list[Any], unit: float) -> tuple[int, ...]:
    pose = row[2]
    if len(pose) == 3:
        return round(pose[0] / unit), round(pose[1] / unit), round(pose[2] * TURN)
    return *(round(value * TURN) for value in pose[:4]), *(round(value / unit) for value in pose[4:])


def _track(values: list[int]) -> Track:
    if len(set(values)) == 1:
        return values[0]
    return [values[0], *(after - before for before, after in zip(values, values[1:], strict=False))]


def _held(rows: list[list | None]) -> list[list | None]:
    """Images that change at every frame, each shown for a while."""
    if len({row[7] for row in rows if row is not None}) <= PICTURES:
        return rows
    every = -(-len(rows) // PICTURES)
    return [rows[t - t % every] for t in range(len(rows))]
