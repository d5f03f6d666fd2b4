"""Checkpoints: atomic, readable without code, refused in one sentence when broken."""

import os
import pickle
import random
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from marl.checkpoints import checkpoint_file
from marl.core import run_directory
from marl.core.errors import UserError


class Evil:
    """Would create a file if anything unpickled it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_round_trip(tmp_path):
    path = tmp_path / "checkpoints" / "last.pt"
    state = {"loss": {"w": torch.randn(3)}, "iteration": 3, "best": None, "names": ["a"], "nested": (1, 2.5)}
    checkpoint_file.save(path, state)
    loaded = checkpoint_file.load(path)
    assert torch.equal(loaded.pop("loss")["w"], state.pop("loss")["w"])
    assert loaded == {**state, "format_version": checkpoint_file.FORMAT_VERSION}
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]  # no temporary file is left


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint_file.save(path, {"iteration": 1})
    with pytest.raises((UserError, pickle.PicklingError, AttributeError)):
        checkpoint_file.save(path, {"iteration": lambda: 0})
    assert checkpoint_file.load(path)["iteration"] == 1
    target = tmp_path / "directory.pt"
    target.mkdir()
    with pytest.raises(UserError, match="cannot write checkpoint"):
        checkpoint_file.save(target, {"iteration": 1})
    assert not list(tmp_path.glob(".*.tmp"))


def test_pickles_never_run(tmp_path, monkeypatch):
    bomb, path = tmp_path / "ran", tmp_path / "evil.pt"
    with pytest.raises(UserError, match="x is a .*Evil; only tensors"):
        checkpoint_file.save(path, {"x": Evil(bomb)})
    monkeypatch.setattr(checkpoint_file, "plain", lambda value, name: value)
    checkpoint_file.save(path, {"x": Evil(bomb)})  # with a digest that is right
    with pytest.raises(UserError, match="cannot be read: it holds more than tensors and plain Python") as error:
        checkpoint_file.load(path)
    assert "\n" not in str(error.value)
    assert not bomb.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_foreign_files_are_named(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.pt"):
        checkpoint_file.load(path)


def test_truncated_newer_and_missing(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(UserError, match="does not exist"):
        checkpoint_file.load(path)
    checkpoint_file.save(path, {"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint_file.load(path)
    checkpoint_file.save(path, {"format_version": 99})
    with pytest.raises(UserError, match="format 99"):
        checkpoint_file.load(path)
    checkpoint_file.save(path, {"format_version": None})
    with pytest.raises(UserError, match="no checkpoint of this framework"):
        checkpoint_file.load(path)
    with pytest.raises(UserError, match="no checkpoint at"):
        run_directory.find(tmp_path)


# ---- the last k, and what is used when one of them is damaged


def test_the_last_k_are_kept_and_the_newest_good_one_is_found(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    assert checkpoint_file.newest(tmp_path) is None
    for iteration in range(1, 6):
        checkpoint_file.save(folder / "last.pt", {"iteration": iteration}, keep=3)
    checkpoint_file.save(folder / "iteration_2.pt", {"iteration": 2})
    checkpoint_file.save(folder / "iteration_1.pt", {"iteration": 1})
    names = ["last.pt", "last-1.pt", "last-2.pt", "iteration_2.pt", "iteration_1.pt"]
    assert [path.name for path in run_directory.candidates(tmp_path)] == names
    assert [checkpoint_file.load(folder / name)["iteration"] for name in names[:3]] == [5, 4, 3]
    assert checkpoint_file.newest(tmp_path)[1]["iteration"] == 5 and not capsys.readouterr().err
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:-9])
    os.truncate(folder / "last-1.pt", 0)
    path, state = checkpoint_file.newest(tmp_path)
    printed = capsys.readouterr().err
    assert (path.name, state["iteration"]) == ("last-2.pt", 3)
    assert "last.pt cannot be read" in printed and "last-1.pt cannot be read" in printed and "iteration 3" in printed
    assert {path.name for path in folder.iterdir()} == {*names[2:], "last.pt.damaged", "last-1.pt.damaged"}
    checkpoint_file.save(folder / "iteration_4.pt", {"iteration": 4})
    assert checkpoint_file.newest(tmp_path)[0].name == "iteration_4.pt"  # later than all that is left of last
    for path in folder.iterdir():
        os.truncate(path, 100)
    with pytest.raises(UserError, match="last-2.pt cannot be read.*iteration_2.pt cannot be read"):
        checkpoint_file.newest(tmp_path)
    assert (folder / "last-2.pt").is_file()  # where nothing is good, nothing is moved


def test_a_damaged_file_never_takes_the_place_of_a_good_one(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    for iteration in (1, 2):
        checkpoint_file.save(folder / "last.pt", {"iteration": iteration}, keep=2)
    os.truncate(folder / "last.pt", 100)
    assert checkpoint_file.newest(tmp_path)[1]["iteration"] == 1
    replace = os.replace

    def killed(source, target):
        if str(target).endswith("last.pt"):
            raise KeyboardInterrupt  # just before the new file would be in its place
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint_file.save(folder / "last.pt", {"iteration": 2}, keep=2)
    monkeypatch.undo()
    assert checkpoint_file.newest(tmp_path)[1]["iteration"] == 1


def test_numbers_of_numpy_are_kept_and_objects_refused_by_name(tmp_path):
    content = {"a": np.float64(0.5), "b": [{"c": np.int32(3)}], "d": OrderedDict(e=(np.bool_(True), None))}
    checkpoint_file.save(tmp_path / "x.pt", content)
    loaded = checkpoint_file.load(tmp_path / "x.pt")
    assert loaded["a"] == 0.5 and type(loaded["a"]) is float and loaded["b"] == [{"c": 3}]
    assert loaded["d"] == OrderedDict(e=(True, None)) and content["d"]["e"][0] is np.True_
    for value, kind in ((np.zeros(2), "numpy.ndarray"), (Path("x"), r"pathlib.*\.PosixPath")):
        with pytest.raises(UserError, match=rf"checkpoint: best.figures\[1\] is a {kind}; only tensors"):
            checkpoint_file.save(tmp_path / "x.pt", {"best": {"figures": [1, value]}})
    assert checkpoint_file.load(tmp_path / "x.pt")["a"] == 0.5


def test_keeping_works_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    for iteration in (1, 2, 3):
        checkpoint_file.save(tmp_path / "last.pt", {"iteration": iteration}, keep=2)
    assert [checkpoint_file.load(tmp_path / name)["iteration"] for name in ("last.pt", "last-1.pt")] == [3, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_temporary_files_of_killed_processes_are_swept_up(tmp_path):
    (tmp_path / ".last.pt.123.tmp").write_bytes(b"half a file")
    checkpoint_file.save(tmp_path / "last.pt", {"iteration": 1})
    checkpoint_file.sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


# ---- weights alone


def test_weights_as_safetensors(tmp_path):
    from safetensors import safe_open

    weights = {"a.weight": torch.randn(3, 2), "a.bias": torch.zeros(3, dtype=torch.float64)}
    path = tmp_path / "best.safetensors"
    checkpoint_file.save_weights(path, weights, {"iteration": "7"})
    with safe_open(path, "pt") as file:  # anybody's reader
        assert file.metadata()["iteration"] == "7"
        assert torch.equal(file.get_tensor("a.weight"), weights["a.weight"])
    loaded = checkpoint_file.load_weights(path)
    assert all(torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype for key, value in weights.items())


# ---- 1,000 damaged or foreign files


def damaged(good: bytes, dice: random.Random) -> bytes:
    """A truncated, bit-flipped, overwritten, grown or foreign version of a file."""
    kind = dice.randrange(6)
    where = dice.randrange(len(good))
    if kind == 0:
        return good[:where]
    if kind == 1:
        return good[:where] + bytes([good[where] ^ (1 << dice.randrange(8))]) + good[where + 1 :]
    if kind == 2:
        junk = dice.randbytes(dice.randrange(1, 200))
        changed = good[:where] + junk + good[where + len(junk) :]
        return changed if changed != good else good[:where]
    if kind == 3:
        return good + dice.randbytes(dice.randrange(1, 200))
    if kind == 4:
        return dice.randbytes(dice.randrange(0, 3000))
    return good[where:] + good[:where] if where else b""


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_five_hundred_damaged_files_each(tmp_path, suffix):
    dice, path = random.Random(0), tmp_path / f"x{suffix}"
    weights = {"layer.weight": torch.randn(8, 4), "layer.bias": torch.randn(8)}
    if suffix == ".pt":
        checkpoint_file.save(path, {"loss": weights, "iteration": 3, "config": {"seed": 0}})
    else:
        checkpoint_file.save_weights(path, weights, {"iteration": "3"})
    good = path.read_bytes()
    assert set(checkpoint_file.load_weights(path)) == set(weights)
    for number in range(500):
        path.write_bytes(damaged(good, dice))
        with pytest.raises(UserError, match=f"x{suffix}") as error:
            checkpoint_file.load_weights(path)
        assert "\n" not in str(error.value), number


@pytest.mark.parametrize("content", [{"w": torch.zeros(3)}, [1, 2], "x", Evil("/nowhere/ran"), {"format_version": 2}])
def test_files_of_torch_and_pickle_are_foreign(tmp_path, content):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match="no digest"):
        checkpoint_file.load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="no digest"):
        checkpoint_file.load(path)


# ---- disks that refuse


FULL = "No space left on device; the earlier one is untouched"
SAVE = """
import sys, torch
from marl.checkpoints import checkpoint_file
from marl.core.errors import UserError
path = sys.argv[1]
try:
    checkpoint_file.save(path, {"iteration": 1, "w": torch.zeros(1000)}, keep=2)
    checkpoint_file.save(path, {"iteration": 2, "w": torch.zeros(1000)}, keep=2)
    print("saved", flush=True)
    checkpoint_file.save(path, {"iteration": 3, "w": torch.zeros(1_000_000)}, keep=2)
except UserError as error:
    print(error)
for name in (path, path.replace("last", "last-1")):
    print(checkpoint_file.load(name)["iteration"])
"""


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path):
    mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
    run = f'{mount} && {sys.executable} -c "$SAVE" {tmp_path}/last.pt && ls -A {tmp_path}'
    environment = {**os.environ, "SAVE": SAVE, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("this machine lets no user mount a small file system")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", run], env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "saved" and done.returncode == 0, done.stderr
    assert lines[1] == f"cannot write checkpoint {tmp_path}/last.pt: {FULL}"
    assert lines[2:] == ["2", "1", "last-1.pt", "last.pt"]  # both still load, and no temporary file is left


def test_a_directory_that_cannot_be_made_or_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write checkpoint .*file/checkpoints/last.pt: (Not a directory|File)"):
        checkpoint_file.save(tmp_path / "file" / "checkpoints" / "last.pt", {"iteration": 1})
    with pytest.raises(UserError, match="cannot write checkpoint /proc/none/last.pt"):  # no user may, root neither
        checkpoint_file.save("/proc/none/last.pt", {"iteration": 1})
