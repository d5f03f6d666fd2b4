"""A replay buffer put back from its files gives the same minibatches, bitwise; each file is written once."""

from pathlib import Path

import pytest
import torch

from agents.collection.replay.buffer import ReplayBuffer
from agents.collection.replay.segments import ReplaySegments
from marl.checkpoints import checkpoint_file
from marl.checkpoints.attachments import Attachments
from marl.core.errors import UserError
from tests.agents.collection.replay.test_replay_buffer import ENDS, E, Plain, T


def segments_of(buffer: ReplayBuffer, folder: Path) -> ReplaySegments:
    attachments = Attachments("replay")
    attachments.open(folder)
    return ReplaySegments(buffer, attachments)


def put_back(plain: Plain, state: dict, folder: Path) -> tuple[ReplayBuffer, ReplaySegments]:
    """A new buffer, after it held something else, with what the checkpoint's `state` holds."""
    other = Plain({(1, 1): "truncated"}, 2, plain.buffer.capacity * E, masks=("action", "alive"))
    segments = segments_of(other.buffer, folder)
    segments.load_state_dict(state)
    return other.buffer, segments


def same(one: ReplayBuffer, other: ReplayBuffer, n_step: int) -> bool:
    """Whether every step held gives the same row."""
    assert one.steps == other.steps and one.frames == other.frames
    numbers = torch.arange(one.steps * E)
    batches = []
    for buffer in (one, other):
        oldest = buffer.added - buffer.steps
        batches.append(buffer.take(oldest + numbers // E, numbers % E, n_step, 0.9))
    flat = [{(k, v): x for k, d in b.items() if isinstance(d, dict) for v, x in d.items()} for b in batches]
    flat = [f | {k: v for k, v in b.items() if not isinstance(v, dict)} for f, b in zip(flat, batches, strict=True)]
    return flat[0].keys() == flat[1].keys() and all(torch.equal(value, flat[1][key]) for key, value in flat[0].items())


@pytest.mark.parametrize("rollouts", [1, 2, 3, 4, 5, 9])
def test_a_buffer_put_back_is_the_same(rollouts: int, tmp_path: Path) -> None:
    plain = Plain(ENDS, rollouts, 3 * T * E, masks=("action", "alive"))
    checkpoint_file.save(tmp_path / "a.pt", segments_of(plain.buffer, tmp_path).state_dict())  # what a checkpoint takes
    buffer, _ = put_back(plain, checkpoint_file.load(tmp_path / "a.pt"), tmp_path)
    assert buffer.added == plain.buffer.added and all(same(plain.buffer, buffer, n) for n in (1, 3))
    draws = [b.sample(50, torch.Generator().manual_seed(1)) for b in (plain.buffer, buffer)]
    assert torch.equal(draws[0]["team"]["next_observation"], draws[1]["team"]["next_observation"])
    for k in range(rollouts, rollouts + 4):  # and goes on alike
        plain.fill(k)
        truncated = plain.rollout.truncated.flatten().nonzero().squeeze(-1)
        for each in (plain.buffer, buffer):
            each.add(plain.rollout, truncated)
        assert all(same(plain.buffer, buffer, n) for n in (1, 3)), k


def test_what_was_allowed_at_ends_is_kept_and_of_an_older_run_all_was(tmp_path: Path) -> None:
    def played(rollouts: int, folder: Path) -> tuple[Plain, ReplaySegments]:
        plain = Plain(ENDS, rollouts, 3 * T * E, masks=("action", "alive"), final_masks=("team",))
        return plain, segments_of(plain.buffer, folder)

    plain, segments = played(5, tmp_path)
    state, (other, restored) = segments.state_dict(), played(2, tmp_path)
    restored.load_state_dict(state)
    assert same(plain.buffer, other.buffer, 1) and same(plain.buffer, other.buffer, 3)
    older = Plain(ENDS, 5, 3 * T * E, masks=("action", "alive"))
    restored.load_state_dict(segments_of(older.buffer, tmp_path).state_dict())
    assert same(older.buffer, other.buffer, 1) and not same(plain.buffer, other.buffer, 1)


def test_a_file_is_written_once(tmp_path: Path) -> None:
    plain = Plain(ENDS, 0, 3 * T * E)
    segments, seen = segments_of(plain.buffer, tmp_path), {}
    for k in range(7):
        plain.fill(k)
        plain.buffer.add(plain.rollout, plain.rollout.truncated.flatten().nonzero().squeeze(-1))
        if k % 2 == 0:
            continue
        before = set(seen)
        files = segments.state_dict()["files"]
        assert len(files) == min(k + 1, 3)
        for name in files:
            about = (tmp_path / name).stat()
            assert seen.setdefault(name, (about.st_ino, about.st_mtime_ns)) == (about.st_ino, about.st_mtime_ns)
        assert len(set(seen) - before) == 2  # of the rollouts since the last save
    # k = 6 was never saved; of seven rollouts six are in files.
    assert len(list((tmp_path / "replay").iterdir())) == 6


def test_a_resumed_buffer_writes_nothing_again_but_in_another_directory(tmp_path: Path) -> None:
    plain = Plain(ENDS, 5, 3 * T * E, masks=("action", "alive"))
    state = segments_of(plain.buffer, tmp_path).state_dict()
    buffer, segments = put_back(plain, state, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "replay").iterdir()}
    assert segments.state_dict()["files"] == state["files"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "replay").iterdir()} == times
    segments.attachments.open(tmp_path / "moved")
    assert segments.state_dict()["files"] == state["files"]  # the same bytes, so the same digests
    assert len(list((tmp_path / "moved" / "replay").iterdir())) == 3 == len(buffer.held)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    plain = Plain(ENDS, 3, 3 * T * E, masks=("action", "alive"))
    state = segments_of(plain.buffer, tmp_path).state_dict()
    name = list(state["files"])[1]
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{tmp_path / name}: does not exist"):
        put_back(plain, state, tmp_path)


def test_ends_that_were_cut_off_take_no_more_room_than_they_need() -> None:
    ends = {(n, e): "truncated" for n in range(200) for e in range(E) if (n + e) % 3 == 0}
    buffer = Plain(ends, 50, 20 * T * E).buffer
    live = int((buffer.final_index >= 0).sum())
    assert sum(buffer.final_counts) == live == len(set(buffer.final_index[buffer.final_index >= 0].tolist()))
    assert live <= len(buffer.final["state"]) <= max(64, live * 9 / 8 + T * E)
