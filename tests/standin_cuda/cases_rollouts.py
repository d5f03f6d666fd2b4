"""Rollouts of VMAS scenarios as CUDA graphs: kernels, draws, masks and resets that the host has prepared."""

import shutil
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch

from envs.base import ActionError
from envs.kernel.tracing.tape import ConstantChanged
from envs.vmas.env import VmasEnv
from envs.vmas.gpu.device_stepper import DeviceStepper
from marl.capture.cuda_graph import NotCaptured
from tests.standin_cuda.runs import cut_back, difference, resume, strict, train
from tests.standin_cuda.standin import watched

__all__ = ["strict"]
SIZES = [
    "device=cuda",
    "env.num_envs=6",
    "env.max_steps=5",
    "env.fast=kernel",
    "env.pool_every=3",
    "algo.rollout_steps=4",
    "algo.minibatch_size=12",
    "algo.epochs=1",
    "frames=336",
    "task.eval_episodes=2",
    "trainer.progress=off",
    "trainer.evaluate_every=0",
    "logger=csv",
]
CHOICES = "env.continuous_actions=false"
RUNS = {
    "balance": [],
    "draws in its steps": ["env.scenario=debug/line_trajectory"],
    "choices, global state": ["env=vmas/mpe/simple_spread", CHOICES, "env.global_state=true", "algo.critic=state"],
    "masks": ["env.scenario=tests.envs.vmas.ends_cases.Veil", CHOICES],
    "agents that end each on its own": ["env.scenario=tests.envs.vmas.ends_cases.Visit", CHOICES],
    "memories": ["network=gru", "network.hidden=8", "algo.chunk_length=2"],
    "exploration that falls": ["algo=pqn", CHOICES],
}


@pytest.fixture
def step_by_step(monkeypatch):
    """Lets rollouts be made by steps that ask the host each, as on a CPU."""
    return partial(monkeypatch.setattr, DeviceStepper, "prepare", lambda self, steps: None)


@pytest.mark.parametrize("name", RUNS)
def test_captured_rollouts_are_the_plain_ones(tmp_path, strict, step_by_step, name) -> None:
    """Pools of resets fall due within every rollout."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NotCaptured)
        _, task, _ = train(tmp_path / "graph", *RUNS[name], sizes=SIZES)
    (graph,) = task.collector.graph.graphs.values()
    assert graph.runs in (9, 10)  # of 14: the tenth is compared with the simulator if there is time
    step_by_step()
    _, plain, _ = train(tmp_path / "plain", *RUNS[name], "trainer.capture=false", sizes=SIZES)
    assert plain.collector.graph is None and plain.env.device_state() is None
    assert not difference(tmp_path / "graph", tmp_path / "plain")


def test_a_resumed_run_captures_again(tmp_path, strict) -> None:
    draws = RUNS["draws in its steps"]
    train(tmp_path / "whole", *draws, "trainer.keep_every=7", "trainer.checkpoint_every=7", sizes=SIZES)
    _, task, _ = resume(cut_back(shutil.copytree(tmp_path / "whole", tmp_path / "half"), 7))
    (graph,) = task.collector.graph.graphs.values()
    assert graph.runs == 3  # of 7
    assert not difference(tmp_path / "whole", tmp_path / "half")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            ["env.pool_every=1", "algo.rollout_steps=20", "frames=120"],
            r"its 20 steps need 20 pools of resets \(env.pool_every=1\)",
        ),
        (["env=vmas/mpe/simple_speaker_listener", CHOICES], "resets draw .*goal.* for the whole batch"),
        (["env=vmas/mpe/simple_tag", "groups.adversary.policy=random"], "not all groups learn"),
    ],
)
def test_what_is_no_graph_says_why_once(tmp_path, settings, why) -> None:
    with pytest.warns(NotCaptured, match=f"^a rollout of VmasEnv: no CUDA graph, {why}") as said:
        _, task, _ = train(tmp_path, *settings, sizes=[*SIZES, "frames=48"])
    assert task.collector.graph is None and sum(w.category is NotCaptured for w in said) == 1


def played(env: VmasEnv, rollouts: int, prepared: bool, before: Callable[[int], None] = int) -> list[torch.Tensor]:
    """Rewards and observations of some rollouts of 4 steps, under actions that depend on the step's number only.

    before: called with the number of each rollout.
    """
    group, shape = env.spec.groups["agents"], (4, env.num_envs)
    A, F = group.n_agents, group.observation_size
    seen = [torch.zeros(*shape, A, F, device="cuda") for _ in range(2)]
    reward = torch.zeros(*shape, A, device="cuda")
    flags = [torch.zeros(shape, dtype=torch.bool, device="cuda") for _ in range(2)]
    env.bind_rollout({"agents": seen[0]}, {"agents": seen[1]}, {"agents": reward}, *flags)
    env.reset(seed=1)
    found = []
    for number in range(rollouts):
        before(number)
        if prepared:
            env.prepare(4)
        for t in range(4):
            generator = torch.Generator().manual_seed(4 * number + t)
            env.step_into(t, {name: value.cuda() for name, value in env.random_action(generator).items()})
        found += [reward.clone(), seen[0].clone()]
    return found


def test_steps_of_a_user_s_own_go_on_from_a_prepared_rollout() -> None:
    one, other = (VmasEnv("balance", 6, max_steps=5, pool_every=3, fast="kernel", device="cuda") for _ in range(2))
    for ours, theirs in zip(played(one, 3, True), played(other, 3, False), strict=True):
        assert torch.equal(ours, theirs)
    assert one.device_state() is not None and other.device_state() is None
    for t in range(7):
        action = one.random_action(torch.Generator().manual_seed(t))
        action = {name: value.cuda() for name, value in action.items()}
        assert torch.equal(one.step(action).observation["agents"], other.step(action).observation["agents"])
    assert one.device_state() is None
    theirs = other.snapshot()
    assert all(torch.equal(value, theirs[key]) for key, value in one.snapshot().items())


def test_resets_that_break_a_constant_are_met_while_a_rollout_is_prepared(monkeypatch) -> None:
    """The pool of step 15 does, in the fourth rollout; the kernel that assumes nothing takes over before step 13."""
    one, other = (VmasEnv("balance", 6, max_steps=5, pool_every=3, fast="kernel", device="cuda") for _ in range(2))
    special = one.stepper.kernel

    def broken(*args) -> None:
        raise ConstantChanged("a mass")

    def before(number: int) -> None:
        if number == 3:
            monkeypatch.setattr(special, "load_pool", broken)

    for ours, theirs in zip(played(one, 5, True, before), played(other, 5, False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert one.stepper.kernel is not special and not one.stepper.specialised and one.device_state() is not None


def test_actions_that_are_not_finite_are_told_with_the_iteration_s_figures() -> None:
    env = VmasEnv("balance", 6, max_steps=5, fast="kernel", device="cuda")
    played(env, 2, True)
    env.prepare(4)
    assert env.device_state() is not None
    for t in range(4):
        action = {"agents": torch.full((6, 3, 2), torch.nan if t == 1 else 0.0, device="cuda")}
        with watched():
            env.step_into(t, action)
    env.figures()  # asks
    with pytest.raises(ActionError, match="not a number"):
        env.prepare(4)
