"""Data sets of episodes: written whole, added to, read as tensors and memory-mapped, split by episode."""

import json

import pytest
import torch
from tensordict import TensorDict

from marl.checkpoints import checkpoint_file
from marl.core.errors import UserError
from marl.data.episodes import Episodes, append, manifest, mapped, nested, shards

ABOUT = {"spec": {"groups": {"agents": {"agents": ["a", "b"]}}}, "metadata": {"dataset_id": "made"}}


def episodes(lengths: list[int], first: float = 0.0) -> dict[str, torch.Tensor]:
    """Made episodes whose observations say where they are from: step number, starting at `first`."""
    steps = sum(lengths)
    number = first + torch.arange(steps, dtype=torch.float32)
    ends = torch.tensor(lengths).cumsum(0) - 1
    return {
        "length": torch.tensor(lengths),
        "agents/observation": number.view(-1, 1, 1).expand(steps, 2, 3).clone(),
        "agents/action": number.view(-1, 1, 1).expand(steps, 2, 1).clone() / 100,
        "agents/reward": torch.ones(steps, 2),
        "agents/final_observation": torch.full((len(lengths), 2, 3), -1.0),
        "terminated": torch.zeros(steps, dtype=torch.bool),
        "truncated": torch.isin(torch.arange(steps), ends),
    }


@pytest.fixture
def folder(tmp_path):
    append(tmp_path / "set", episodes([3, 2]), ABOUT, "first")
    append(tmp_path / "set", episodes([4, 1, 2], first=5), ABOUT, "second")
    return tmp_path / "set"


def test_the_manifest_lists_what_there_is(folder):
    content = manifest(folder)
    assert [(s["file"], s["episodes"], s["steps"], s["source"]) for s in content["shards"]] == [
        ("episodes-00000.safetensors", 2, 5, "first"),
        ("episodes-00001.safetensors", 3, 7, "second"),
    ]
    assert content["metadata"] == {"dataset_id": "made", "total_episodes": 5, "total_steps": 12}
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *(s["file"] for s in content["shards"])}
    read = list(shards(folder))
    assert torch.equal(read[1]["agents/observation"], episodes([4, 1, 2], first=5)["agents/observation"])


def test_steps_lie_under_torchrls_names_with_their_episode(folder):
    data = Episodes(str(folder), validation=0.2)
    assert data.steps["agents", "observation"][:, 0, 0].tolist() == list(range(12))
    assert data.steps["episode"].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4]
    assert data.steps["step"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 0, 1]
    assert data.steps["next", "done"].nonzero().flatten().tolist() == [2, 4, 8, 9, 11]
    assert data.steps["next", "agents", "reward"].shape == (12, 2)
    assert data.final["agents/final_observation"].shape == (5, 2, 3) and data.final["length"].sum() == 12


def test_whole_episodes_are_held_out(folder):
    data = Episodes(str(folder), validation=0.4)
    learned, held_out = (set(data.steps["episode"][rows].tolist()) for rows in (data.train, data.validation))
    assert len(held_out) == 2 and not learned & held_out and learned | held_out == {0, 1, 2, 3, 4}
    assert len(data.train) + len(data.validation) == 12
    few = Episodes(str(folder), validation=0.5, episodes=2)
    assert set(few.steps["episode"][torch.cat([few.train, few.validation])].tolist()) == {0, 1}


def test_the_memory_mapped_copy_equals_and_follows_the_shards(folder):
    copy, plain = mapped(folder), Episodes(str(folder), validation=0.2).steps
    assert isinstance(copy, TensorDict) and (copy == plain).all()
    stored = folder / "memmap" / "agents" / "observation.memmap"
    when = stored.stat().st_mtime_ns
    again = Episodes(str(folder), validation=0.2, memmap=True)
    assert stored.stat().st_mtime_ns == when  # opened, not written again
    assert torch.equal(again.final["length"], torch.tensor([3, 2, 4, 1, 2]))
    append(folder, episodes([6], first=50), ABOUT)
    assert len(mapped(folder)) == 18 and mapped(folder)["agents", "observation"][-1, 0, 0] == 55


def test_a_killed_writer_leaves_no_half_set(folder, monkeypatch):
    def killed(path, *content, **settings):
        raise KeyboardInterrupt

    before = (folder / "manifest.json").read_text()
    monkeypatch.setattr(checkpoint_file, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        append(folder, episodes([9]), ABOUT)
    assert (folder / "manifest.json").read_text() == before and len(Episodes(str(folder), validation=0.2).steps) == 12


def test_what_cannot_be_read_is_one_sentence(folder, tmp_path):
    with pytest.raises(UserError, match="no data set of episodes .*scripts/record.py ckpt=RUN_DIR"):
        Episodes(str(tmp_path))
    with pytest.raises(UserError, match=r"data\.episodes=9: .* holds 5 episodes; from 2 to 5"):
        Episodes(str(folder), episodes=9)
    with pytest.raises(UserError, match="less than one of 5 episodes"):
        Episodes(str(folder), validation=0.1)
    with pytest.raises(UserError, match="holds episodes of other agents"):
        append(folder, episodes([2]), {"spec": {"groups": {"others": {}}}})
    with pytest.raises(UserError, match="differ from these in having agents/raw"):
        append(folder, {**episodes([2]), "agents/raw": torch.zeros(2, 2, 1)}, ABOUT)
    shard = folder / "episodes-00001.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="damaged"):
        Episodes(str(folder), validation=0.2)
    listed = manifest(folder)
    (folder / "manifest.json").write_text(json.dumps({**listed, "format": 9}))
    with pytest.raises(UserError, match="has format 9; this version reads 1"):
        manifest(folder)


def test_a_shard_by_itself_counts_on_from_the_episodes_before_it():
    assert nested(episodes([1, 2]), first=7)["episode"].tolist() == [7, 8, 8]
