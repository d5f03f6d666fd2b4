"""Checkpoints: atomic, readable without code, refused in one sentence when broken."""

import pickle

import pytest
import torch

from marl import checkpoint
from marl.errors import UserError


class Evil:
    """Would create a file if anything unpickled it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_round_trip(tmp_path):
    path = tmp_path / "checkpoints" / "last.pt"
    state = {"loss": {"w": torch.randn(3)}, "iteration": 3, "best": None, "names": ["a"], "nested": (1, 2.5)}
    checkpoint.save(path, state)
    loaded = checkpoint.load(path)
    assert torch.equal(loaded.pop("loss")["w"], state.pop("loss")["w"])
    assert loaded == {**state, "format_version": checkpoint.FORMAT_VERSION}
    assert [p.name for p in path.parent.iterdir()] == ["last.pt"]  # no temporary file is left


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"iteration": 1})
    with pytest.raises((UserError, pickle.PicklingError, AttributeError)):
        checkpoint.save(path, {"iteration": lambda: 0})
    assert checkpoint.load(path)["iteration"] == 1
    target = tmp_path / "directory.pt"
    target.mkdir()
    with pytest.raises(UserError, match="cannot write checkpoint"):
        checkpoint.save(target, {"iteration": 1})
    assert not list(tmp_path.glob(".*.tmp"))


def test_pickles_never_run(tmp_path):
    bomb, path = tmp_path / "ran", tmp_path / "evil.pt"
    checkpoint.save(path, {"x": Evil(bomb)})  # with a digest that is right
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(path)
    assert not bomb.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_foreign_files_are_named(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.pt"):
        checkpoint.load(path)


def test_truncated_newer_and_missing(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(path)
    checkpoint.save(path, {"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(path)
    checkpoint.save(path, {"format_version": 99})
    with pytest.raises(UserError, match="format 99"):
        checkpoint.load(path)
    checkpoint.save(path, {"format_version": None})
    with pytest.raises(UserError, match="no checkpoint of this framework"):
        checkpoint.load(path)
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoint.find(tmp_path)
