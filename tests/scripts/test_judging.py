"""evaluate.py's absolute metric and robustness sweeps, crossplay.py and report.py, on runs of seconds."""

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from marl.config import compose
from marl.core.errors import UserError
from tests.scripts.test_train import TINY


@pytest.fixture(scope="module")
def run(script, tmp_path_factory) -> Path:
    """Balance with three agents."""
    directory = tmp_path_factory.mktemp("balance")
    script("train").train(compose.compose([*TINY, "frames=200", "env.fast=off"]), directory)
    return directory


@pytest.fixture(scope="module")
def tag(script, tmp_path_factory) -> list[str]:
    """Two runs on simple_tag."""
    size = ["env.num_envs=4", "env.max_steps=10", "algo.rollout_steps=10", "algo.minibatch_size=20", "frames=40"]
    places = [tmp_path_factory.mktemp("tag") / name for name in ("a", "b")]
    for seed, place in enumerate(places):
        place.mkdir()
        overrides = ["env=vmas/mpe/simple_tag", "env.fast=off", *size, "task.eval_episodes=4", f"seed={seed}"]
        script("train").train(compose.compose([*overrides, "network.hidden=[8]"]), place)
    return [str(place) for place in places]


def test_the_absolute_metric_is_of_the_best_on_fresh_episodes_and_the_report_uses_it(run: Path, script) -> None:
    module = script("evaluate")
    result = module.evaluate(*module.parse([f"ckpt={run}", "absolute=true", "device=cpu"]))
    assert result["episode_return"]["episodes"] == 60 and result["checkpoint"].endswith("best.pt")
    written = json.loads((run / "checkpoints" / "evaluation_absolute.json").read_text())
    assert written["episode_return"] == result["episode_return"]
    again = module.evaluate(*module.parse([f"ckpt={run}", "which=best", "episodes=60", f"out={run}/e.json"]))
    assert again["episode_return"]["mean"] != result["episode_return"]["mean"]  # other seeds
    report = script("report")
    comparison = report.report(*report.parse([str(run), f"out={run}/report", "reps=100"]))
    assert comparison.which == "absolute"
    assert comparison.score("mappo", "balance").tolist() == [result["episode_return"]["mean"]]
    assert "absolute metric" in (run / "report" / "report.html").read_text()


def test_robustness_sweeps(run: Path, script) -> None:
    module = script("evaluate")

    def vary(what: str, values: str) -> dict:
        module.evaluate(*module.parse([f"ckpt={run}", f"vary={what}", f"values={values}"]))
        name = f"robustness_{what.rpartition('.')[2]}"
        assert (run / "checkpoints" / f"{name}.png").stat().st_size > 1000
        return json.loads((run / "checkpoints" / f"{name}.json").read_text())

    plain = module.evaluate(*module.parse([f"ckpt={run}"]))["episode_return"]["mean"]
    for what, values in (("observation_noise", "[0,1.5]"), ("action_noise", "[0,1]"), ("frozen", "[0,3]")):
        means = [row["episode_return"]["mean"] for row in vary(what, values)["rows"]]
        assert means[0] == plain != means[1]
    rows = vary("n_agents", "[2,3,4]")["rows"]
    assert [len(row["groups"]["agents"]["agents"]) for row in rows] == [2, 3, 4]
    assert rows[1]["episode_return"]["mean"] == plain
    assert [row["value"] for row in vary("env.scenario_kwargs.package_mass", "[5,20]")["rows"]] == [5, 20]
    module.evaluate(*module.parse([f"ckpt={run}", "env.max_steps=9", f"out={run}/short.json"]))
    assert json.loads((run / "short.json").read_text())["overrides"] == ["env.max_steps=9"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["vary=frozen"], "vary and values go together"),
        (["absolute=true", "which=last"], "which=last: absolute=true decides that"),
        (
            ["absolute=true", "env.max_steps=10"],
            "^env.max_steps=10: the absolute metric is of the run as it was trained",
        ),
        (
            ["absolute=true", "+env.scenario_kwargs.n_agents=2"],
            "n_agents=2: the absolute metric is of the run as it was",
        ),
        (["absolute=true", "deterministic=false"], "^deterministic=false: absolute=true decides that"),
        (["absolute=true", "vary=frozen", "values=[0]"], "^vary=frozen: absolute=true decides that"),
        (["vary=action_noise", "values=[]"], r"^values=\[\]: at least one value"),
        (["vary=frozen", "values=[4]"], "frozen=4: there are 3 agents"),
        (["vary=frozen", "values=[-1]"], "frozen=-1: must be at least 0"),
        (["vary=action_noise", "values=[much]"], "action_noise=much: must be a number"),
        (["vary=network.hidden", "values=[[8]]"], "the policy of .* does not fit then"),
        (["vary=algo.gama", "values=[1]"], "unknown key 'algo.gama'; did you mean 'gamma'"),
    ],
)
def test_mistakes_in_evaluation_are_rejected(arguments, sentence, run: Path, script) -> None:
    module = script("evaluate")
    with pytest.raises(UserError, match=sentence):
        module.evaluate(*module.parse([f"ckpt={run}", *arguments]))


def test_cross_play(tag: list[str], script, tmp_path: Path) -> None:
    module = script("crossplay")
    options = ["opponents=[still,simple_tag]", "episodes=3", f"out={tmp_path}"]
    result = module.crossplay(*module.parse([*tag, *options]))
    assert result["teams"] == ["mappo 0", "mappo 1", "still", "simple_tag"] and result["side"] == "adversary"
    cells = json.loads((tmp_path / "crossplay.json").read_text())["cells"]
    assert len(cells) == 4 and all(len(row) == 4 for row in cells)
    assert all(c["adversary"]["episodes"] == 3 and len(c["agent"]["ci95"]) == 2 for row in cells for c in row)
    evaluate = script("evaluate")
    plain = evaluate.evaluate(*evaluate.parse([f"ckpt={tag[0]}", "episodes=3", "seed=0", f"out={tmp_path}/e.json"]))
    assert cells[0][0]["agent"] == plain["groups"]["agent"]["episode_return"]  # against itself: what evaluate.py says
    other = module.crossplay(*module.parse([*tag, *options, "side=agent"]))["cells"]
    assert other[1][0]["agent"] == cells[0][1]["agent"]
    for name in ("crossplay.md", "adversary.csv", "agent.tex", "agent.png"):
        assert (tmp_path / name).stat().st_size > 50


def test_mistakes_in_cross_play_are_rejected(tag: list[str], run: Path, script) -> None:
    module = script("crossplay")
    for arguments, sentence in (
        ([], "name the runs"),
        ([str(run)], "has one group of agents, agents; there is no other group to play against"),
        ([*tag, "side=prey"], "side=prey: there are adversary, agent"),
        ([*tag, "opponents=[clever]"], "no opponent 'clever'"),
        ([tag[0], str(run)], "its teams .* differ from"),
        ([*tag, "episodes=1"], "episodes=1: must be at least 2"),
    ):
        with pytest.raises(UserError, match=sentence):
            module.crossplay(*module.parse(arguments))


def test_runs_that_meet_come_from_one_environment(tag: list[str], script, tmp_path: Path) -> None:
    module, other = script("crossplay"), tmp_path / "other"
    shutil.copytree(tag[1], other)
    cfg = OmegaConf.load(other / "config.yaml")
    cfg.env.num_envs, cfg.env.pool_every, cfg.env.max_steps, cfg.env.scenario_kwargs.shape_agent_rew = 2, 7, 20, True
    OmegaConf.save(cfg, other / "config.yaml")
    small = ["episodes=2", "opponents=[]", f"out={tmp_path}"]
    message = (
        r"other.*: its environment differs .*\(env.max_steps=20, not 10, env.scenario_kwargs.shape_agent_rew=true, not"
    )
    with pytest.raises(UserError, match=f"{message} false\\); env.max_steps=VALUE sets one for all"):
        module.crossplay(*module.parse([tag[0], str(other), *small]))
    same = ["env.max_steps=10", "env.scenario_kwargs.shape_agent_rew=true"]
    assert len(module.crossplay(*module.parse([tag[0], str(other), *small, *same]))["cells"]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name the runs to report on"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["x", "scores=final"], "unknown option 'scores'; did you mean 'score'"),
        (["x", "score=last"], "score=last: must be 'auto', 'final', 'best' or 'absolute'"),
        (["x", "reps=9"], "reps=9: must be at least 100"),
        (["x", "bounds={balance: [1]}"], "bounds"),
    ],
)
def test_mistakes_in_reports_are_rejected(arguments, sentence, script) -> None:
    module = script("report")
    with pytest.raises(UserError, match=sentence):
        module.report(*module.parse(arguments))
