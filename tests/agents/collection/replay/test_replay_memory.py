"""A replay buffer in mapped files: the same minibatches, no names, room reserved; what a million frames take."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from agents.collection.replay.buffer import ReplayBuffer
from agents.collection.replay.memory import MappedMemory
from agents.collection.rollout_buffer import RolloutBuffer
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.core.errors import UserError
from tests.agents.collection.replay.test_replay_buffer import ENDS, E, Plain, T
from tests.agents.collection.replay.test_replay_segments import same

ROOT = Path(__file__).resolve().parents[4]
MANY = {(n, e): "truncated" for n in range(400) for e in range(E) if (n + e) % 3 == 0}  # more ends than at first


def two(tmp_path: Path, ends: dict, rollouts: int) -> tuple[ReplayBuffer, ReplayBuffer]:
    """What was played, in memory and on disk."""
    plain = Plain(ends, 0, 20 * T * E, masks=("action", "alive"))
    mapped = ReplayBuffer(plain.rollout, 20 * T * E, MappedMemory(lambda: tmp_path / "run"))
    assert not (tmp_path / "run").exists()  # nothing is made before there are steps
    for k in range(rollouts):
        plain.fill(k)
        for buffer in (plain.buffer, mapped):
            buffer.add(plain.rollout, plain.rollout.cut_frames())
    return plain.buffer, mapped


@pytest.mark.parametrize(("ends", "rollouts"), [(ENDS, 1), (ENDS, 5), (MANY, 19), (MANY, 50)])
def test_a_buffer_on_disk_gives_the_same_minibatches(ends: dict, rollouts: int, tmp_path: Path) -> None:
    device, disk = two(tmp_path, ends, rollouts)
    assert all(same(device, disk, n) for n in (1, 3))
    assert list((tmp_path / "run").iterdir()) == []  # its files have no names
    restored = two(tmp_path / "other", {}, 3)[1]
    restored.restore(disk.held.start, map(disk.rollout, disk.held), disk.following())
    assert all(same(device, restored, n) for n in (1, 3))


def test_an_empty_buffer_on_disk_is_saved_and_put_back(tmp_path: Path) -> None:
    first, second = (two(tmp_path / name, {}, 0)[1] for name in "ab")
    second.restore(0, [], first.following())
    assert second.steps == 0 and all(not value.any() for value in second.following().values())


def test_without_a_call_of_the_system_room_is_reserved_by_writing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    device, disk = two(tmp_path, MANY, 30)
    assert same(device, disk, 2)


def test_a_folder_that_was_removed_stays_removed(tmp_path: Path) -> None:
    memory = MappedMemory(lambda: tmp_path / "run")
    memory.zeros({"a": ((5,), torch.float32)})
    (tmp_path / "run").rmdir()
    with pytest.raises(UserError, match=f"^{tmp_path}/run: cannot reserve 0.0 MB for the replay buffer: No such file"):
        memory.zeros({"a": ((5,), torch.float32)})
    assert not (tmp_path / "run").exists()


def test_a_disk_without_room_says_so_before_anything_is_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=1m none {disk}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("this machine lets no user mount a small file system")
    script = (
        "import torch, pathlib; from agents.collection.replay.memory import MappedMemory\n"
        f"memory = MappedMemory(lambda: pathlib.Path({str(disk)!r}))\n"
        "small = memory.zeros({'a': ((100_000,), torch.uint8)})['a'].fill_(1)\n"
        "try: memory.zeros({'b': ((1_000_000,), torch.uint8)})\n"
        "except Exception as error: print(error)\n"
        "larger = memory.zeros({'b': ((800_000,), torch.uint8)})['b'].fill_(2)\n"
        "print(int(small.sum()), int(larger.sum(dtype=torch.int64)))"
    )
    train = f'{mount} && {sys.executable} -c "$1"'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", train, "sh", script], env=environment, capture_output=True,
                          text=True)  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first == (
        f"{disk}: cannot reserve 1.0 MB for the replay buffer: No space left on device; algo.buffer_on=device keeps it "
        "in memory, a smaller algo.buffer_frames needs less"
    )
    assert second == "100000 1600000" and done.returncode == 0, done.stderr


def anonymous() -> int:
    """Bytes of this process that no file holds."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def memory(on: str, folder: str) -> tuple[int, int, int]:
    """Bytes by which the process grew, that the buffer's tensors have, and that a million frames hold.

    Navigation's shapes: three agents that see 18 numbers and choose two; an episode of 100 steps is cut off.
    """
    steps, envs, frames = 100, 1000, 1_000_000
    action = ActionSpec("continuous", -torch.ones(3, 2), torch.ones(3, 2))
    spec = EnvSpec({"agents": GroupSpec("agents", ("a", "b", "c"), 18, action)}, None, 100)
    actor = SimpleNamespace(head=SimpleNamespace(n_features=4, raw_size=2, raw_dtype=torch.float32), memory_shape=None)
    rollout = RolloutBuffer(spec, envs, "cpu", steps, {"agents": actor})
    before = anonymous()
    buffer = ReplayBuffer(rollout, frames, MappedMemory(lambda: Path(folder)) if on == "disk" else None)
    for _ in range(15):
        buffer.add(rollout, torch.arange(envs) * 97)
    grown = anonymous() - before
    assert buffer.capacity * envs == frames
    frame = 4 * 3 * (18 + 2 + 1) + 3  # bytes: observation, action, reward; terminated, truncated, done
    held = frames * frame + 10 * envs * 4 * 3 * 18  # and the last observation of 10,000 episodes
    tensors = [*buffer.rows.values(), *buffer.final.values(), buffer.final_index]
    return grown, sum(t.numel() * t.element_size() for t in tensors), held


@pytest.mark.parametrize("on", ["device", "disk"])
def test_a_million_frames_take_little_more_than_what_they_hold(on: str, tmp_path: Path) -> None:
    """In a process of its own: another test's garbage would be counted."""
    code = f"import sys; from {__name__} import memory; print(*memory(*sys.argv[1:]))"
    command = [sys.executable, "-c", code, on, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    grown, taken, held = map(int, done.stdout.split())
    assert held < taken < 1.05 * held
    if on == "device":
        assert taken * 0.95 < grown < 1.2 * held
    else:
        assert grown < 0.1 * held
