"""record.py, experiment=clone, evaluate.py and init_from as a user strings them together, on runs of seconds."""

import json
from pathlib import Path

import pytest
import torch

from marl.config import compose
from marl.core.errors import UserError
from marl.data.episodes import Episodes, manifest
from marl.launch import build
from tests.scripts.test_train import TINY

SIZE = ["env.scenario_kwargs.n_agents=3", "env.fast=off", "env.max_steps=15", "task.eval_episodes=4"]
SIZE += ["network.hidden=[8]"]


@pytest.fixture(scope="module")
def teacher(script, tmp_path_factory) -> Path:
    """A run of balance."""
    directory = tmp_path_factory.mktemp("teacher")
    script("train").train(compose.compose([*TINY, "frames=200", *SIZE]), directory)
    return directory


def record(script, *arguments: str) -> Path:
    module = script("record")
    return module.run(module.options.parse(module.Options, arguments))


def halves(observation: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A policy of one's own: every action is 0.5."""
    return torch.full((*observation.shape[:2], 2), 0.5)


def test_from_a_teacher_to_mappo_that_goes_on_from_its_clone(teacher: Path, script, shell, tmp_path: Path) -> None:
    done = shell(tmp_path, "record", f"ckpt={teacher}", "episodes=7", "shard=4", "out=set")
    assert done.returncode == 0 and "set: 7 episodes, " in done.stdout and "mean return" in done.stdout
    content = manifest(tmp_path / "set")
    assert [shard["episodes"] for shard in content["shards"]] == [4, 3]
    names = {"dataset_id", "total_episodes", "total_steps", "algorithm_name", "env_spec", "action_space"}
    assert names <= set(content["metadata"]) and content["metadata"]["env_spec"]["scenario"] == "balance"

    run = tmp_path / "clone"
    run.mkdir()
    overrides = ["experiment=clone", f"data.folder={tmp_path / 'set'}", "data.validation=0.3", "task.critic_coef=0.5"]
    overrides += [*SIZE, "epochs=2", "task.batch_size=16", "trainer.progress=off"]
    returned = script("train").train(compose.compose(overrides), run)
    module = script("evaluate")
    result = module.evaluate(*module.parse([f"ckpt={run}"]))
    final = json.loads((run / "summary.json").read_text())["final"]
    assert result["episode_return"]["mean"] == pytest.approx(final["episode_return"]["mean"]) and returned is not None

    warm = tmp_path / "warm"
    warm.mkdir()
    script("train").train(
        compose.compose([*TINY, "frames=100", *SIZE, f"init_from={run}", "strict=false", "optimizer.lr=1e-12"]), warm
    )
    summary = json.loads((warm / "summary.json").read_text())
    task, clone = (build.rebuild(place / "checkpoints" / "last.pt", [], weights=True)[1] for place in (warm, run))
    for part in ("actors", "critics"):
        for name, value in getattr(clone.loss, part).state_dict().items():
            torch.testing.assert_close(getattr(task.loss, part).state_dict()[name], value, atol=1e-6, rtol=0)
    assert summary["task"] == "on_policy"


def test_episodes_are_reproducible_and_can_be_added_to(teacher: Path, script, tmp_path: Path) -> None:
    first, second = (Episodes(str(record(script, f"ckpt={teacher}", "episodes=4", f"out={tmp_path / n}")), 0.3)
                     for n in "ab")  # fmt: skip
    assert (first.steps == second.steps).all()
    folder = record(script, f"ckpt={teacher}", "episodes=4", f"out={tmp_path / 'a'}")
    both = Episodes(str(folder), 0.3).steps
    assert (both[: len(first.steps)] == first.steps).all() and int(both["episode"].max()) == 7
    new = both[len(first.steps) :]["agents", "observation"]
    assert not torch.equal(new[:10], first.steps["agents", "observation"][:10])


def test_other_policies_than_the_trained_one(teacher: Path, script, tmp_path: Path) -> None:
    function = f"policy={__name__}.halves"
    episodes = record(script, f"ckpt={teacher}", function, "episodes=2", f"out={tmp_path}/o")
    assert (Episodes(str(episodes), 0.5).steps["agents", "action"] == 0.5).all()
    mode = record(script, f"ckpt={teacher}", "deterministic=true", "episodes=2", f"out={tmp_path}/m")
    steps = Episodes(str(mode), 0.5).steps["agents"]
    task = build.rebuild(teacher / "checkpoints" / "last.pt", [], weights=True)[1]
    raw = task.loss.actors["agents"].act(steps["observation"], deterministic=True)[0]
    torch.testing.assert_close(steps["raw"], raw, atol=1e-5, rtol=1e-4)
    random = record(script, f"ckpt={teacher}", "policy=random", "episodes=2", f"out={tmp_path}/r")
    assert "raw" not in Episodes(str(random), 0.5).steps["agents"].keys()
    with pytest.raises(UserError, match="policy=best: must be trained, random, or the dotted path"):
        record(script, f"ckpt={teacher}", "policy=best")
    with pytest.raises(UserError, match=r"o: its episodes differ from these in having agents/raw"):
        record(script, f"ckpt={teacher}", "episodes=2", f"out={tmp_path}/o")


@pytest.mark.parametrize(
    ("episodes", "shard", "sizes"), [(21, 20, [2] * 10 + [1]), (10, 100, [1] * 10), (3, 100, [1] * 3), (2, 1, [1, 1])]
)
def test_episodes_that_would_share_what_a_reset_draws_come_in_more_parts(
    script, tmp_path: Path, episodes: int, shard: int, sizes: list[int]
) -> None:
    folder = tmp_path / "set"
    record(script, "ckpt=zoo/simple_push", "policy=random", f"episodes={episodes}", f"shard={shard}", f"out={folder}")
    assert [part["episodes"] for part in manifest(folder)["shards"]] == sizes
