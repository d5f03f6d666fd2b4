"""elo.py, evaluate.py and replays of runs whose groups have policies of their own."""

import json
import re
import shutil
from pathlib import Path

import pytest

from agents.evaluation.episode_replays import record_policy
from agents.policies.policy import Policy
from marl.core.errors import UserError
from tests.fixtures.runs import make_run

SMALL = ["network.hidden=[8]", "frames=160"]
TAG = ["env=vmas/mpe/simple_tag", *SMALL]
TEAM = "env.scenario_kwargs"
FOOTBALL = [
    "env=vmas/football", f"{TEAM}.n_blue_agents=2", f"{TEAM}.n_red_agents=2", f"{TEAM}.ai_red_agents=false",
    "groups.agent_red.policy=pool", "groups.agent_red.of=agent_blue", "groups.agent_red.every=2", *SMALL,
]  # fmt: skip


@pytest.fixture(scope="module")
def tag(tmp_path_factory) -> Path:
    past = ["groups.adversary.past=0.25", "groups.agent.past=0.25", "groups.adversary.every=1", "groups.agent.every=2"]
    return make_run(tmp_path_factory.mktemp("runs") / "tag", *TAG, *past, "groups.agent.eval_policy=simple_tag")


@pytest.fixture(scope="module")
def football(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "football", *FOOTBALL)


def test_teams_that_differ_have_a_rating_for_each_side(tag: Path, script, tmp_path: Path) -> None:
    module = script("elo")
    result = module.rate(*module.parse([str(tag), "episodes=5", "reps=100", f"out={tmp_path}", "versions=3"]))
    names = [player["player"] for player in result["players"]]
    assert names == [f"{side} {n}" for side in ("adversary", "agent") for n in ("0", "2", "4", "random")]
    assert result["outcome"] == "median" and all(player["games"] == 20 for player in result["players"])
    assert abs(sum(player["elo"] for player in result["players"])) < 1e-6
    assert all(p["ci95"][0] <= p["elo"] + 30 and p["ci95"][1] >= p["elo"] - 30 for p in result["players"])
    assert json.loads((tmp_path / "elo.json").read_text())["players"] == result["players"]
    assert "| adversary 2 |" in (tmp_path / "elo.md").read_text() and (tmp_path / "elo.png").stat().st_size > 1000


def test_teams_that_are_alike_play_both_sides(football: Path, script, tmp_path: Path) -> None:
    module = script("elo")
    options = ["episodes=4", "reps=100", f"out={tmp_path}", "opponents=[still]", "env.max_steps=8"]
    result = module.rate(*module.parse([str(football), *options]))
    assert [player["player"] for player in result["players"]] == ["0", "2", "4", "still"]
    assert result["outcome"] == "difference" and result["side"] == "agent_blue"
    assert all(player["games"] == 2 * 3 * 4 for player in result["players"])
    again = module.rate(*module.parse([str(football), *options]))
    assert again["players"] == result["players"]


def test_checkpoints_are_versions_too(script, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *TAG, "trainer.keep_every=1", "trainer.max_iterations=3")
    module = script("elo")
    arguments = [str(run), "episodes=3", "reps=100", f"out={tmp_path}/elo", "opponents=[]"]
    result = module.rate(*module.parse(arguments))
    assert [p["player"] for p in result["players"]][:3] == ["adversary 1", "adversary 2", "adversary 3"]


def test_evaluations_repeat_those_of_training(tag: Path, football: Path, script, tmp_path: Path) -> None:
    module = script("evaluate")
    for run in (tag, football):
        last = json.loads((run / "summary.json").read_text())["final"]["episode_return"]
        again = module.evaluate(*module.parse([f"ckpt={run}", f"out={tmp_path}/e.json"]))
        assert again["episode_return"]["mean"] == last["mean"]
        learner = "adversary" if run is tag else "agent_blue"  # the other is scripted, or learns nothing
        assert again["groups"][learner]["episode_return"] == again["episode_return"]
    random = module.evaluate(*module.parse([f"ckpt={tag}", "policy=random", f"out={tmp_path}/r.json"]))
    assert random["episode_return"]["episodes"] == 3


def test_a_team_against_its_past_is_replayed_against_itself(football: Path) -> None:
    recording = record_policy(Policy.load(football), max_steps=3)
    assert recording.lengths == [3]


def test_what_cannot_be_rated_or_replayed_is_rejected(tag: Path, football: Path, script, tmp_path: Path) -> None:
    module = script("elo")
    alone = make_run(tmp_path / "alone", *SMALL)
    random = make_run(tmp_path / "random", *TAG, "groups.agent.policy=random")
    longer = shutil.copytree(tag, tmp_path / "longer")
    (longer / "config.yaml").write_text(re.sub("max_steps: .*", "max_steps: 77", (longer / "config.yaml").read_text()))
    for arguments, sentence in (
        ([], "name the runs whose versions play"),
        ([str(alone)], "has one group of agents, agents; there is no other group to play against"),
        ([str(random)], "kept no versions; a pool"),
        ([str(tag), str(football)], "its teams .* differ from those of"),
        ([str(tag), str(longer)], r"longer: its environment differs from that of .* \(env.max_steps=77, not"),
        ([str(tag), "side=prey"], "side=prey: there are adversary, agent"),
        ([str(tag), "outcome=luck"], "outcome=luck: must be 'auto', 'difference' or 'median'"),
    ):
        with pytest.raises(UserError, match=sentence):
            module.rate(*module.parse(arguments))
    with pytest.raises(UserError, match="group agent is played by groups.agent.policy=random, which is no policy of"):
        record_policy(Policy.load(random), max_steps=3)
    crossplay = script("crossplay")
    with pytest.raises(UserError, match="group agent is played by groups.agent.policy=random"):
        crossplay.crossplay(*crossplay.parse([str(random), f"out={tmp_path}"]))
