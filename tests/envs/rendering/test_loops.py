"""Loops of the gallery: what `loop` packs is, unpacked, where the recording's own drawing has it."""

from itertools import accumulate

import pytest
import torch

from envs.rendering.loops import HIDDEN, TURN, UNITS, loop
from envs.rendering.recording import Recording, Restorer, record
from envs.rendering.web_frames import shape_row
from envs.vmas.env import VmasEnv

SCENARIOS = ["balance", "navigation", "mpe/simple_tag", "sampling"]  # joints; lidars; borders; a picture that changes


def recorded(scenario: str, steps: int = 12) -> Recording:
    settings = {"scenario": scenario, "max_steps": steps}
    env, generator = VmasEnv(**settings, num_envs=2, fast="off"), torch.Generator().manual_seed(3)
    return record(settings, lambda observation: (env.random_action(generator), {}), 2, 3)


def unpacked(track, count: int) -> list[int]:
    return list(accumulate(track)) if isinstance(track, list) else [track] * count


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_loop_is_what_the_recording_shows(scenario: str) -> None:
    recording = recorded(scenario)
    packed, restorer = loop(recording, 1), Restorer(recording)
    count, unit = packed["frames"], packed["unit"]
    assert count == 13 and packed["dt"] == recording.dt
    bounds = [unpacked(track, count) for track in packed["bounds"]]
    moved = 0
    for t in (0, 7, 12):
        drawn = restorer.scene(t, 1)
        assert [track[t] * unit for track in bounds] == pytest.approx(drawn.bounds, abs=unit)
        expected = sorted(as_drawn(shape_row(shape)) for shape in drawn.shapes if shape.layer not in HIDDEN)
        found = []
        for _, looks, pose in packed["things"]:
            numbers, poses = unpacked(looks, count), [unpacked(track, count) for track in pose]
            moved += len(set(poses[-2])) > 1
            if numbers[t] < 0:
                continue
            kind, points, colour, _, extra = packed["looks"][numbers[t]]
            place = [track[t] * unit for track in (poses[:2] if len(poses) == 3 else poses[4:])]
            turned = [track[t] / TURN for track in (poses[2:] if len(poses) == 3 else poses[:4])]
            found.append((kind, points, colour, "" if kind == "image" else extra, place, turned))
        assert [row[:4] for row in sorted(found)] == [row[:4] for row in expected]
        for (*_, place, turned), (*_, true_place, true_turned) in zip(sorted(found), expected, strict=True):
            assert place == pytest.approx(true_place, abs=0.51 * unit)
            assert turned == pytest.approx(true_turned, abs=0.51 / TURN)
    assert moved  # something does
    assert unit == pytest.approx((drawn.bounds[1] - drawn.bounds[0]) / UNITS)


def as_drawn(row: list) -> tuple:
    kind, points, pose, colour, _, _, _, extra = row
    place, turned = (pose[:2], pose[2:]) if len(pose) == 3 else (pose[4:], pose[:4])
    return kind, points, [round(part, 2) for part in colour], "" if kind == "image" else extra, place, turned


def test_a_loop_ends_with_its_episode_or_earlier() -> None:
    recording = recorded("balance")
    assert loop(recording, 0, most=5)["frames"] == 6
    recording.lengths[0] = 3
    assert loop(recording, 0)["frames"] == 4
