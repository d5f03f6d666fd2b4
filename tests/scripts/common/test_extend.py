"""A user's own scenario, environment, network, loss and algorithm: the project of docs/examples."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from agents.policies.policy import Policy
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.config import compose
from marl.core.errors import UserError
from marl.networks import MLP

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples"
RL = ["algo.rollout_steps=10", "algo.minibatch_size=40", "env.num_envs=8", "task.eval_episodes=3", "frames=160"]
REPLAY = ["algo.updates=5", "algo.buffer_frames=240"]
BALANCE = ["env.max_steps=15", "env.fast=off", *RL]  # what is tried on it is no matter of kernels
CLASSIFY = ["task=supervised", "data=digits", "objective=cross_entropy", "algo=null", "env=null", "frames=null"]
CASES = {
    "scenario": (["env=gather", "env.scenario_kwargs.n_agents=2", "env.max_steps=15", *RL], "frames=240"),
    "ends": (["env=errands", "network=multi", "env.max_steps=15", *RL], "frames=240"),
    "environment": (["env=agree", "env.choices=3", *RL], "frames=240"),
    "network": (["network=residual", "network.depth=3", *BALANCE], "frames=240"),
    "classifier": (["network=residual", *CLASSIFY, "epochs=1"], "epochs=2"),
    "loss": (["experiment=sine", "objective=log_cosh", "objective.scale=0.5", "epochs=1"], "epochs=2"),
    "algorithm": (["algo=spo", "algo.clip=0.3", *BALANCE], "frames=240"),
    "off_policy": (["algo=redq", "algo.ensemble=3", *BALANCE, *REPLAY], "frames=240"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    """The examples, somewhere outside of the package."""
    shutil.copytree(EXAMPLES, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(tmp_path / "project"))
    return tmp_path / "project"


@pytest.mark.parametrize("name", CASES)
def test_it_trains_resumes_and_is_evaluated(name: str, shell, script, project: Path) -> None:
    overrides, more = CASES[name]
    done = shell(project, "train", *overrides, "--config-dir", "conf", "hydra.run.dir=run")  # flags anywhere
    assert done.returncode == 0, done.stderr
    run = project / "run"
    script("train").train(compose.compose([f"resume={run}", more]), run)
    key, _, value = more.partition("=")
    summary = json.loads((run / "summary.json").read_text())
    assert summary[key] == int(value)
    evaluation = script("evaluate")
    figures, last = evaluation.evaluate(*evaluation.parse([f"ckpt={run}"])), summary["final"]
    if name in ("classifier", "loss"):
        assert last.items() <= figures.items() and last
        return
    assert figures["episode_return"] == last["episode_return"]
    policy = Policy.load(run)
    shapes = {n: (g.n_agents, g.action.size) for n, g in policy.spec.groups.items()}
    acted = policy.act({n: torch.zeros(2, g.n_agents, g.observation_size) for n, g in policy.spec.groups.items()})
    assert {n: tuple(a.shape[1:]) for n, a in acted.items()} == shapes
    if name == "scenario":  # drawn and recorded like the simulator's own
        replay = script("replay")
        folder = replay.run(replay.Options(str(run), episodes=1, formats=["png"]))
        assert (folder / "replay.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (["network=residual", "network.depth=0"], "network.depth=0"),
        (["env=agree", "env.n_agents=1"], "env.n_agents=1: no other agent to agree with"),
        (["experiment=sine", "objective=log_cosh", "objective.scale=-1"], "objective.scale=-1"),
        (["algo=spo", "algo.dual=3"], "algo.dual"),
        (["algo=redq", "algo.subset=6"], "algo.subset=6: at most algo.ensemble=5"),
        (["env=gather", "env.scenario_kwargs.n_agent=3"], "n_agent"),
    ],
)
def test_mistakes_in_them_are_rejected_in_a_sentence(override, words, script, project: Path, tmp_path: Path) -> None:
    path = f"hydra.searchpath=['file://{project / 'conf'}']"
    with pytest.raises(UserError) as mistake:
        script("train").train(compose.compose([path, *override]), tmp_path / "run")
    assert words in str(mistake.value) and "\n" not in str(mistake.value)


def test_the_mathematics_of_the_examples(project: Path) -> None:
    from my_project.algorithm import SPO
    from my_project.loss import LogCosh

    x = torch.randn(100, 3)
    torch.testing.assert_close(LogCosh(2.0)(x, 0 * x), 4 * (x / 2).cosh().log().mean())
    loss = SPO(clip=0.2).loss_class({}, {}, SPO(clip=0.2))
    log_ratio, advantage = torch.randn(50, 2) * 0.1, torch.randn(50, 2)
    log_ratio.requires_grad_()
    value, _, fraction = loss.surrogate(log_ratio, advantage, None, 0.2)
    r = log_ratio.exp()
    torch.testing.assert_close(value, -(r * advantage - advantage.abs() / 0.4 * (r - 1) ** 2).mean())
    assert fraction == ((r - 1).abs() > 0.2).float().mean()
    best = 1 + 0.2 * advantage.sign()  # where the gradient vanishes: the ratio that it draws to
    at_best = best.log().detach().requires_grad_()
    loss.surrogate(at_best, advantage, None, 0.2)[0].backward()
    assert F.l1_loss(at_best.grad, torch.zeros_like(best)) < 1e-6


def test_targets_of_the_off_policy_example_ask_random_critics(project: Path) -> None:
    from my_project.off_policy import REDQ, REDQLoss

    algo = REDQ(ensemble=3, subset=2, critic="local")
    box = ActionSpec("continuous", -torch.ones(2, 1), torch.ones(2, 1))
    spec = EnvSpec({"team": GroupSpec("team", ("a", "b"), 4, box)}, None, 5)
    loss = algo.make_loss(spec, MLP)
    assert isinstance(loss, REDQLoss) and len(loss.q_critics["team"].critics) == 3
    values = torch.tensor([[[1.0]], [[2.0]], [[6.0]]])  # [N, B, A]: the third is never the smallest of two
    assert loss.for_actors(values, algo).item() == 3.0
    torch.manual_seed(0)
    smallest = torch.stack([loss.in_targets(values, algo) for _ in range(300)]).flatten()
    assert {1.0, 2.0} == {*smallest.tolist()}
    assert 0.57 < (smallest == 1.0).float().mean() < 0.77  # two of the three pairs hold the first


def test_the_off_policy_example_learns(project: Path, script, tmp_path: Path) -> None:
    """To agree: random choices give 2.5 of 10, all that a team can have by luck of its first weights is a constant."""
    small = ["env.num_envs=8", "env.max_steps=10", "algo.rollout_steps=10", "algo.updates=20", "algo.minibatch_size=32"]
    quick = ["algo.buffer_frames=800", "algo.tau=0.05", "algo.temperature=0.1", "optimizer.lr=3e-3", "frames=800"]
    path = f"hydra.searchpath=['file://{project / 'conf'}']"
    overrides = [path, "algo=redq", "env=agree", *small, *quick, "task.eval_episodes=20", "logger=csv"]
    script("train").train(compose.compose([*overrides, "trainer.evaluate_every=0"]), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["final"]["episode_return"]["mean"] > 8


def test_the_page_shows_how_it_is_done_from_python(shell, project: Path) -> None:
    page = (EXAMPLES.parent / "guides" / "extending.md").read_text()
    code = page.partition("## From Python")[2].partition("```python\n")[2].partition("```")[0]
    done = shell(project, "train", *CASES["ends"][0], "--config-dir", "conf", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    names: dict = {}
    exec(code.replace("RUN_DIR", str(project / "run")), names)
    assert names["parts"].keys() == {"position", "goal", "fuel", "others"}
    assert names["success"].dtype == torch.bool and names["alive"].shape == (8, 2)
    assert names["action"].shape == (4, 2, 3) and names["step"].agent_terminated == {}


def test_agreeing_pays(project: Path) -> None:
    from my_project.environment import Agree

    env = Agree(n_agents=3, choices=4, num_envs=50, max_steps=5)
    same = {"agents": torch.ones(50, 3, 1, dtype=torch.int64)}
    split = {"agents": torch.tensor([0, 1, 1]).expand(50, 3).unsqueeze(-1)}
    assert torch.equal(env.step(same).reward["agents"], torch.ones(50, 3))
    assert torch.equal(env.step(split).reward["agents"][0], torch.tensor([0.0, 0.5, 0.5]))
    saved = env.snapshot()
    first = [env.step(split) for _ in range(8)]
    env.restore(saved)
    for step in first:
        again = env.step(split)
        assert torch.equal(again.observation["agents"], step.observation["agents"])
        assert torch.equal(again.next_observation["agents"], step.next_observation["agents"])
    assert [bool(step.truncated.all()) for step in first] == [False, False, True, False, False, False, False, True]
