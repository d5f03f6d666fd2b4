"""A full disk, several processes and another number of them, where a replay buffer lies beside the checkpoints."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marl.checkpoints import checkpoint_file
from marl.core import files
from marl.core.errors import UserError
from tests.agents.tasks.off_policy.test_replay_resume import SMALL, differences, files_of, needed, run, stopped
from tests.fixtures.shell import ranks
from tests.trials.kills import same

ROOT = Path(__file__).resolve().parents[4]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
TRAIN = str(ROOT / "scripts" / "train.py")


def fill(monkeypatch, nth: int) -> None:
    """The disk is full in the middle of the `nth` file of a rollout from here on."""
    left = nth

    class Half:
        def __init__(self, path, mode):
            self.file, self.path = open(path, mode), path

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            nonlocal left
            left -= "/replay/" in str(self.path)
            if left < 0:
                self.file.write(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(content)

    monkeypatch.setattr(files, "open", Half, raising=False)


@pytest.mark.parametrize("nth", [0, 3])
def test_a_disk_that_is_full_within_a_file_of_the_buffer(nth: int, tmp_path: Path, monkeypatch) -> None:
    settings = ["trainer.checkpoint_every=2"]
    cut = stopped(tmp_path / "cut", 2, *settings)
    fill(monkeypatch, nth)
    with pytest.raises(UserError, match=rf"cannot write checkpoint {cut}/replay/\S+: No space left on device"):
        run(cut, *settings, again=str(cut))
    monkeypatch.undo()
    assert files_of(cut) == needed(cut)  # nothing half-written, nothing that is of no use
    assert checkpoint_file.newest(cut)[1]["iteration"] == (2 if nth == 0 else 4)
    run(cut, *settings, again=str(cut))
    assert differences(run(tmp_path / "whole", *settings), cut) == []


def train_on_a_disk(tmp_path: Path, room: str, *settings: str) -> str:
    """Train on a real file system of this size until it is full; the error's line. What it held is in `out` then."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={room} none {disk}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("this machine lets no user mount a small file system")
    settings = [*SMALL, "frames=40000", f"hydra.run.dir={disk}", *settings]
    train = f'{mount} && cd {disk}; {sys.executable} {TRAIN} "$@"; echo "exit $?"; cp -r {disk} {tmp_path / "out"}'
    command = ["unshare", "-rm", "sh", "-c", train, "sh", *settings]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert "exit 2" in done.stdout and "Traceback" not in done.stderr, done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return message


def test_a_disk_without_room_for_the_buffer_is_one_sentence(tmp_path: Path) -> None:
    message = train_on_a_disk(tmp_path, "900k", "algo.buffer_on=disk", "algo.buffer_frames=40000")
    assert message.startswith(f"error: {tmp_path}/disk: cannot reserve 12.4 MB for the replay buffer: No space left")
    assert message.endswith("algo.buffer_on=device keeps it in memory, a smaller algo.buffer_frames needs less")
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_real_disk_that_fills_up_leaves_good_checkpoints(tmp_path: Path, shell) -> None:
    out = tmp_path / "out"
    message = train_on_a_disk(tmp_path, "900k", "trainer.keep_every=1")
    assert "cannot write" in message and "No space left on device" in message and "untouched" in message
    assert files_of(out) == needed(out)
    reached = checkpoint_file.newest(out)[1]["iteration"]
    again = shell(tmp_path, "train", f"resume={out}", f"trainer.max_iterations={reached + 1}")
    assert again.returncode == 0 and f"resuming after iteration {reached}\n" in again.stdout, again.stderr


@pytest.mark.parametrize("fault", ["missing", "damaged"])
def test_a_file_that_is_no_good_ends_the_command_with_one_sentence(fault: str, tmp_path: Path, shell) -> None:
    done = shell(tmp_path, "train", *SMALL, "frames=80", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    path = tmp_path / min(files_of(tmp_path))
    before = {each: each.read_bytes() for each in (tmp_path / "checkpoints").iterdir()}
    if fault == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
    again = shell(tmp_path, "train", f"resume={tmp_path}", "trainer.max_iterations=3")
    assert again.returncode == 2
    what = {"missing": "does not exist", "damaged": "is damaged, or another run's (its digest does not match)"}[fault]
    assert again.stderr.startswith(f"error: {path}: {what}; the checkpoint needs it; resume=FILE goes on")
    assert len(again.stderr.splitlines()) == 1
    assert {each: each.read_bytes() for each in (tmp_path / "checkpoints").iterdir()} == before


def test_every_process_has_its_own_part_of_the_buffer(tmp_path: Path, shell) -> None:
    settings = ["trainer=ddp", *SMALL, "frames=400", "algo.buffer_frames=120", "scheduler=constant"]

    def train(*arguments: str) -> None:
        for done in shell.together(tmp_path, Path(TRAIN), *ranks(), arguments=arguments):
            assert done.returncode == 0, done.stderr[-3000:]

    train(*settings, "trainer.max_iterations=6", "hydra.run.dir=whole")
    train(*settings, "trainer.max_iterations=4", "hydra.run.dir=cut")
    train("resume=cut", "trainer.max_iterations=6")
    a, b = (checkpoint_file.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "cut"))
    assert len(a["processes"]) == 2 and all(same(a[key], b[key]) for key in ("loss", "optimizer", "processes"))
    for rank, process in enumerate(a["processes"]):
        names = list(process["task"]["files"])
        assert len(names) == 3 and all(f"-{rank}-" in name for name in names)
    assert files_of(tmp_path / "cut") == needed(tmp_path / "cut")
    alone = shell(tmp_path, "train", "resume=cut", "trainer.max_iterations=7")
    assert alone.returncode == 0, alone.stderr
    assert "another number of processes: the replay buffer begins empty\n" in alone.stdout
    task = checkpoint_file.load(tmp_path / "cut" / "checkpoints" / "last.pt")["processes"][0]["task"]
    assert task["updates"] == 7 * 3 and len(task["files"]) == 1
