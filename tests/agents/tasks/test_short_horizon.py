"""SHAC's task: targets by hand, windows that hold what an ordinary rollout holds, resumed runs, mistakes."""

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch

from agents.algorithms.shac import SHAC
from agents.policies.policy import Policy
from agents.tasks.short_horizon import ShortHorizon
from envs.vmas.env import VmasEnv
from marl.checkpoints import checkpoint_file, resume
from marl.config import compose
from marl.core.errors import UserError
from marl.launch import build
from marl.networks import MLP
from tests.marl.runs import StopAfter, rows
from tests.trials.kills import SAME, same

SMALL = [
    "algo=shac",
    "env=vmas/mpe/simple_spread",
    "env.num_envs=4",
    "env.max_steps=7",
    "algo.rollout_steps=5",
    "algo.minibatch_size=6",
    "network.hidden=[8]",
    "task.eval_episodes=2",
    "trainer.progress=off",
    "trainer.checkpoint_every=1",
    "trainer.evaluate_every=0",
    "logger=csv",
    "callbacks=null",
]
SPREAD = partial(VmasEnv, "simple_spread", num_envs=4, max_steps=7, scenario_kwargs={"n_agents": 2})
NET = partial(MLP, hidden=[8])
SHAC_, APG = ["algo=shac"], ["algo=apg", "algo.rollout_steps=5"]
MAPPO = ["algo=mappo", "algo.epochs=1", "env.fast=off", "experiment=normalized"]
PLAIN = [*MAPPO[:-1], "experiment=defaults_0_1"]  # which normalises nothing


def config_of(*overrides: str) -> dict:
    return compose.check(compose.compose([*SMALL, *overrides]))


def run(folder: Path, *overrides: str, callbacks=(), again: str | None = None) -> Path:
    """Trains as scripts/train.py does; `again`: the directory that it goes on from."""
    config = config_of("frames=160", *overrides)
    config["resume"] = again
    trainer = build.build_trainer(config)
    content = resume.resumed(config, folder)
    config["resume"] = None
    task, setup = build.build_task(config), build.build_setup(config)
    setup["callbacks"] += callbacks
    trainer.fit(task, folder, resume=content, **setup)
    return folder


def checkpoint(folder: Path) -> dict:
    return checkpoint_file.load(folder / "checkpoints" / "last.pt")


def differences(one: Path, other: Path) -> list[str]:
    a, b = checkpoint(one), checkpoint(other)
    return [key for key in SAME if not same(a[key], b[key])]


def test_the_critics_targets_are_td_lambda_of_the_target_critic() -> None:
    torch.manual_seed(0)
    algo = SHAC(rollout_steps=5, minibatch_size=4, gamma=0.9, lam=0.7, reward_scale=2.0)
    task = ShortHorizon(SPREAD, algo, NET, frames=1000, eval_episodes=2)
    with torch.no_grad():
        for parameter in task.loss.critics.parameters():
            parameter.add_(1.0)  # its target has not followed: the targets must not depend on the critic
    for iteration in range(2):  # the second window holds the end of the episodes
        task.collect(iteration)
    rollout, target = task.rollout, task.loss.targets["agents"]
    assert rollout.truncated[1].all() and not rollout.terminated.any()
    with torch.no_grad():
        value = target(rollout.next["agents"])
        expected, following = [], value[-1]
        for t in reversed(range(5)):
            mixed = value[t] if t in (1, 4) else 0.3 * value[t] + 0.7 * following
            following = 2.0 * rollout.reward["agents"][t] + 0.9 * mixed
            expected.append(following)
    actors, *critics = list(task.batches(1))
    assert set(actors["agents"].keys()) == {"objective"} and len(critics) == 2 * 5
    found = {}
    for batch in critics:
        rows = zip(batch["agents", "observation"].flatten(1).tolist(), batch["agents", "return"], strict=True)
        found |= {tuple(seen): target for seen, target in rows}
    for t, e in itertools.product(range(5), range(4)):
        seen = tuple(rollout.observed["agents"][t, e].flatten().tolist())
        torch.testing.assert_close(found[seen], expected[4 - t][e])
    for critic, follower in zip(task.loss.critics.parameters(), target.parameters(), strict=True):
        torch.testing.assert_close(follower, critic - 0.8)  # tau is 0.2


def test_a_window_holds_what_an_ordinary_rollout_holds() -> None:
    rollouts = []
    for trains in (True, False):
        torch.manual_seed(0)
        algo = SHAC(rollout_steps=5, minibatch_size=4)
        task = ShortHorizon(SPREAD, algo, NET, frames=1000, eval_episodes=2, trains=trains)
        figures = []
        for iteration in range(2):
            task.gather(iteration)
            figures.append(task.figures)
        rollouts.append((task.rollout.data.clone(), task.rollout.observed["agents"].clone(), figures[1]))
    (window, seen, figures), (plain, plain_seen, plain_figures) = rollouts
    torch.testing.assert_close(seen, plain_seen)
    for key, value in plain.flatten_keys().items():
        torch.testing.assert_close(window.flatten_keys()[key], value)
    assert figures.keys() == plain_figures.keys() and figures["episodes"].item() == 4
    assert figures["episode_return"].item() == pytest.approx(plain_figures["episode_return"].item(), rel=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        [],
        ["algo=apg", "algo.rollout_steps=5", "algo.policy=deterministic", "algo.entropy_coef=0"],
        ["algo.value_norm=popart", "algo.entropy_coef=0.01", "algo.critic=state", "env.global_state=true"],
        ["algo.ppo_coef=0.5"],
    ],
    ids=["shac", "apg", "popart", "mixture"],
)
def test_a_resumed_run_ends_in_the_same_bits(kind: list[str], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *kind)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", *kind, callbacks=[StopAfter(3)])
    cut = run(tmp_path / "cut", *kind, again=str(tmp_path / "cut"))
    assert differences(whole, cut) == [] and rows(whole) == rows(cut)
    parts = {key.partition(".")[0] for key in checkpoint(whole)["loss"]}
    assert parts == ({"actors"} if "algo=apg" in kind else {"actors", "critics", "targets"})


@pytest.mark.parametrize("coef", ["0", "0.5"])
def test_recorded_minibatches_change_no_bit(coef: str, tmp_path: Path) -> None:
    kind = [f"algo.ppo_coef={coef}"]
    recorded, plain = (run(tmp_path / name, *kind, f"trainer.capture={name}") for name in ("true", "false"))
    assert differences(recorded, plain) == []
    assert ("clip_fraction" in rows(plain)[0]) == (coef != "0")


def test_ppos_rows_are_of_the_window_and_its_policy() -> None:
    """Advantages are the critics' targets less the target critic's values, with mean 0 and deviation 1."""
    torch.manual_seed(0)
    algo = SHAC(rollout_steps=5, minibatch_size=None, epochs=1, ppo_coef=0.5, gamma=0.9, lam=0.7)
    task = ShortHorizon(SPREAD, algo, NET, frames=1000, eval_episodes=2)
    task.collect(0)
    first, second = task.batches(0)
    rows, rollout = second["agents"], task.rollout
    assert set(first["agents"].keys()) == {"objective"}
    with torch.no_grad():
        advantage = rows["return"] - task.loss.targets["agents"](rows["observation"])
        params = task.loss.actors["agents"](rows["observation"])  # nothing has moved it yet
        torch.testing.assert_close(rows["log_prob"], task.loss.actors["agents"].head.log_prob(params, rows["action"]))
    expected = (advantage - advantage.mean()) / advantage.std(correction=0)
    torch.testing.assert_close(rows["advantage"], expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(rows["action"], rollout.action["agents"].flatten(0, 1))


def test_a_run_begins_from_mappos_weights(tmp_path: Path) -> None:
    teacher = run(tmp_path, *PLAIN, "algo.normalize_observation=true")
    for strict in ("true", "false"):
        task = build.build_task(config_of("frames=160", f"init_from={teacher}", f"strict={strict}"))
        weights, saved = task.loss.state_dict(), checkpoint(teacher)["loss"]
        follows = {n.replace("critics.agents.", "targets.agents.network."): v for n, v in saved.items()}
        follows = {n: v for n, v in follows.items() if n.startswith("targets.")}
        assert weights.keys() == saved.keys() | follows.keys()
        for name, value in weights.items():
            assert torch.equal(value, (saved | follows)[name])


CHANGES = {
    "shac to mappo": (SHAC_, MAPPO),
    "mappo to shac": (MAPPO, SHAC_),
    "shac to plain mappo": (SHAC_, PLAIN),
    "plain mappo to shac": (PLAIN, SHAC_),
    "shac to apg": (SHAC_, APG),
    "plain mappo to apg": (PLAIN, APG),
}


@pytest.mark.parametrize(("first", "then"), CHANGES.values(), ids=CHANGES)
def test_a_run_of_one_algorithm_goes_on_as_another(first, then, tmp_path: Path, capsys) -> None:
    """Whether both normalise observations and values, or one alone."""
    teacher = run(tmp_path / "first", *first, "env.fast=auto")
    capsys.readouterr()
    student = run(tmp_path / "then", *then, "env.fast=auto", f"init_from={teacher}", "optimizer.lr=1e-12")
    normalised = first != PLAIN, then != PLAIN
    told = {(True, False): "now part of the first layer", (False, True): "observations stay as they are"}
    words = told.get(normalised, "")
    assert words in capsys.readouterr().out
    before, after = (Policy.load(folder) for folder in (teacher, student))
    observation = VmasEnv("mpe/simple_spread", num_envs=50, max_steps=7, fast="off").reset(seed=1)[0]
    tolerance = {"rtol": 1e-3, "atol": 1e-3}
    if normalised == (True, True):  # its statistics went on
        assert after.actors["agents"].inputs.norm.count > before.actors["agents"].inputs.norm.count > 0
        return
    torch.testing.assert_close(after.act(observation), before.act(observation), **tolerance)
    if "algo=apg" not in then:
        torch.testing.assert_close(after.values(observation), before.values(observation), **tolerance)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env.continuous_actions=false"], "group agents: .* continuous .* are discrete, and .*algo=qmix, vdn, iql"),
        (["env=vmas/mpe/simple_reference", "env.words=discrete"], "group agents: .* its own are hybrid"),
        (["env.fast=off"], "env.fast=off: .* kernels have"),
        (["env=gymnasium"], "env: .* VMAS scenarios have .*, GymnasiumEnv has not"),
        (["network=gru", "network.hidden=8"], "network: has a memory"),
        (["groups.agents.past=0.5"], "groups.agents.past: needs algo=mappo or ippo"),
        (["curriculum.env.max_steps={0: 5, 0.5: 7}"], "curriculum.env: needs algo=mappo"),
        (["algo.minibatch_size=21"], "algo.minibatch_size=21: larger than the window .* at most 20"),
        (["algo.ppo_coef=1", "algo.bootstrap=false"], "algo.ppo_coef=1: its advantages need a critic"),
        (["algo.ppo_coef=1", "algo.policy=deterministic"], "algo.ppo_coef=1: algo.policy=deterministic has no dens"),
        (["algo.policy=categorical"], "algo.policy=categorical does not fit continuous actions"),
        (["algo.policy=epsilon_greedy"], "algo.policy=epsilon_greedy: values choices"),
    ],
)
def test_what_has_no_gradients_is_refused_in_a_sentence(overrides, message) -> None:
    with pytest.raises(UserError, match=message) as refused:
        build.build_task(config_of("frames=160", *overrides))
    assert "\n" not in str(refused.value)


def test_who_only_plays_needs_no_gradients(tmp_path: Path) -> None:
    teacher = run(tmp_path)
    for changes in (["env.fast=off"], ["env.continuous_actions=true", "env.num_envs=2"]):
        _, task = build.rebuild(teacher / "checkpoints" / "last.pt", changes)
        assert task.evaluate()["episode_length"] == 7
    with pytest.raises(UserError, match="env.fast=off: .* kernels have"):
        build.build_task(config_of("frames=160", "env.fast=off"))


def test_without_a_critic_its_minibatches_are_not_asked_for() -> None:
    task = build.build_task(config_of("frames=160", "algo.bootstrap=false", "algo.minibatch_size=21"))
    assert task.steps_per_iteration == 1  # the actors' own, of the window of 20 frames


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.accumulate=2"], "trainer.accumulate=2: only 1 is allowed"),
        (["optimizer.name=LBFGS", "~optimizer.kwargs.eps"], "optimizer.name='LBFGS': computes"),
        (["callbacks=default", "debug=overfit"], "debug=overfit: .* ShortHorizon can compute once only"),
    ],
)
def test_what_needs_a_graph_twice_is_refused_in_a_sentence(overrides, message, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, *overrides)


def test_half_precision_trains_the_critics(tmp_path: Path) -> None:
    run(tmp_path, "trainer.precision=bf16")
    assert all(torch.isfinite(value).all() for value in checkpoint(tmp_path)["loss"].values())
