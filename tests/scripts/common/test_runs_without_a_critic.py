"""What comes after training, on runs of algorithms that value actions instead of states: every tool, each family."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from agents.deploy.export import export
from agents.deploy.live_session import Session
from agents.deploy.web_weights import plain
from agents.policies.policy import Policy
from marl.config import compose
from tests.fixtures.runs import make_run

TAG = ["env=vmas/mpe/simple_tag", "env.max_steps=10", "trainer.keep_every=1"]
DISCRETE, REPLAY = "env.continuous_actions=false", ["algo.buffer_frames=200", "algo.updates=2"]
RUNS = {
    "qmix": ["algo=qmix", DISCRETE, *REPLAY],
    "masac": ["algo=masac", *REPLAY],
    "masac_choices": ["algo=masac", DISCRETE, *REPLAY],
    "matd3": ["algo=matd3", *REPLAY],
    "pqn_vdn": ["algo=pqn_vdn", DISCRETE],
}


class Made(dict):
    """{name: run directory}, trained when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __missing__(self, name: str) -> Path:
        self[name] = make_run(self.folder / name, *RUNS[name], *TAG)
        return self[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("runs"))


def seen(policy: Policy) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: (50, g.n_agents, g.observation_size) for name, g in policy.spec.groups.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", RUNS)
def test_it_is_loaded_saved_and_exported_without_a_critic(runs, name: str, tmp_path: Path) -> None:
    policy = Policy.load(runs[name])
    assert len(policy.critics) == 0 and policy.values(seen(policy)) == {}
    expected = policy.act(seen(policy))
    again = Policy.load(export(policy, "safetensors", tmp_path / "file"))
    program = torch.export.load(export(policy, "torch_export", tmp_path / "program")).module()
    for group, ours in zip(expected, program(*seen(policy).values()), strict=True):
        torch.testing.assert_close(ours, expected[group])
        assert torch.equal(again.act(seen(policy))[group], expected[group])
    with safe_open(str(tmp_path / "file" / "policy.safetensors"), "pt") as file:
        assert {key.split(".")[0] for key in file.keys()} == {"actors"}  # noqa: SIM118 - a file


@pytest.mark.parametrize("name", RUNS)
def test_it_is_evaluated_replayed_and_shown(runs, name: str, script, tmp_path: Path) -> None:
    run, evaluation, replay = runs[name], script("evaluate"), script("replay")
    figures = evaluation.evaluate(*evaluation.parse([f"ckpt={run}", "episodes=3"]))
    assert math.isfinite(figures["episode_return"]["mean"])
    folder = replay.run(replay.Options(str(run), episodes=1, formats=["html"], out=str(tmp_path)))
    assert (folder / "replay.html").stat().st_size > 1000
    policy = Policy.load(run)
    page = plain(policy)
    assert all(page[group]["critic"] is None for group in policy.actors)
    session = Session(policy, {k: v for k, v in policy.metadata["env"].items() if not k.startswith("_")})
    session.step()
    about = session.frame()["about"]
    assert all(agent["value"] is None for agent in about.values()) and json.dumps(about, allow_nan=False)


@pytest.mark.parametrize("name", ["qmix", "masac", "matd3"])
def test_a_clone_of_it_is_what_the_next_run_begins_with(runs, name: str, script, tmp_path: Path) -> None:
    record = script("record")
    folder = record.run(record.Options(str(runs[name]), episodes=8, shard=8, out=str(tmp_path / "data")))
    overrides = [o for o in RUNS[name] if not o.startswith(("algo.",))]
    config = ["experiment=clone", *overrides, "env=vmas/mpe/simple_tag", "env.max_steps=10", "env.fast=off"]
    config += [f"data.folder={folder}", "data.validation=0.25", "epochs=1", "task.eval_episodes=3", "logger=csv"]
    order = sorted(config, key=lambda o: not o.startswith(("experiment", "env=", "algo=")))
    script("train").train(compose.compose([*order, "task.batch_size=20"]), tmp_path / "clone")
    clone = Policy.load(tmp_path / "clone")
    begin = [f"init_from={tmp_path / 'clone'}", "strict=false", "optimizer.lr=1e-12"]  # so it stays what it begins with
    after = make_run(tmp_path / "after", *RUNS[name], *TAG, *begin)
    for group, action in Policy.load(after).act(seen(clone)).items():
        torch.testing.assert_close(action, clone.act(seen(clone))[group])


def test_they_meet_are_rated_and_compared_by_their_names(runs, script, tmp_path: Path) -> None:
    crossplay, elo, report = script("crossplay"), script("elo"), script("report")
    pair = [str(runs["qmix"]), str(runs["pqn_vdn"])]
    played = crossplay.crossplay(pair, crossplay.Options(episodes=2, out=str(tmp_path / "cross")), [])
    assert played["teams"] == ["qmix", "pqn_vdn", "random"]
    rated = elo.rate(pair[:1], elo.Options(episodes=2, versions=2, reps=100, out=str(tmp_path / "elo")), [])
    assert rated
    options = report.Options(out=str(tmp_path / "report"), reps=100)
    comparison = report.report([str(runs[name]) for name in RUNS], options)
    assert {*comparison.algorithms} == {"qmix", "masac", "matd3", "pqn_vdn"}
