"""Kernels against the eager environment: whole transitions, restarts, snapshots, rollout buffers, refusals."""

import shutil
import subprocess
import sys

import pytest
import torch

from envs.base import ActionError, EnvError
from envs.kernel.compile import compiled
from envs.kernel.tracing import rewrite
from envs.vmas.env import VmasEnv
from marl.core.errors import CannotCompile
from marl.native.compiler import compile_library
from marl.native.library_cache import cache_folder
from tests.envs.kernel.helpers import assert_same, pair
from tests.fixtures.kernels import kernels_made_anew

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here")

SPEAKING = {"team": ["speaker", "listener_0"]}
SETTINGS = [
    {"scenario": "simple_speaker_listener", "heterogeneous": "pad", "groups": SPEAKING},
    {"scenario": "simple_speaker_listener", "heterogeneous": "pad", "groups": SPEAKING, "continuous_actions": False},
    {"scenario": "simple_spread"},
    {"scenario": "debug/goal", "global_state": True},
    {"scenario": "dropout"},
    {"scenario": "balance"},
    {"scenario": "simple_spread", "continuous_actions": False},
    {"scenario": "dispersion"},
    {"scenario": "simple_crypto", "continuous_actions": False, "multi_discrete": True},
    {"scenario": "navigation"},
    {"scenario": "simple_tag", "heterogeneous": "pad"},
    {"scenario": "debug/line_trajectory"},
    {"scenario": "transport"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_transitions_are_the_eager_ones_through_restarts(settings):
    fast, eager = pair(**settings)
    assert fast.path == "kernel" and eager.path == "eager"
    generator = torch.Generator().manual_seed(0)
    for _ in range(18):  # two time limits and three pools
        action = eager.random_action(generator)
        assert_same(fast.step(action), eager.step(action))


def test_a_goal_drawn_for_the_whole_batch_picks_its_own_kernel():
    fast, eager = pair(scenario="simple_push")
    generator, goals = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        goals.add(eager.simulator.agents[0]._goal.name)
        action = eager.random_action(generator)
        assert_same(fast.step(action), eager.step(action))
    assert len(goals) == 2 and fast.path == "kernel"


def test_snapshots_move_between_kernel_and_simulator():
    fast, eager = pair(scenario="simple_spread")
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        fast.step(fast.random_action(generator))
    saved = fast.snapshot()
    eager.restore(saved)
    actions = [fast.random_action(generator) for _ in range(6)]
    first = [fast.step(a) for a in actions]
    for a, mine in zip(actions, first, strict=True):
        assert_same(mine, eager.step(a))
    fast.restore(saved)
    for a, mine in zip(actions, first, strict=True):
        again = fast.step(a)
        assert all(torch.equal(again.observation[n], mine.observation[n]) for n in again.observation)


def test_changes_to_the_simulator_count_from_the_next_step():
    fast, eager = pair(scenario="debug/goal")
    for env in (fast, eager):
        env.step({n: torch.zeros(env.num_envs, g.n_agents, g.action.size) for n, g in env.spec.groups.items()})
        agent = env.simulator.agents[0]
        agent.state.pos = agent.state.pos + 0.25
    action = eager.random_action(torch.Generator().manual_seed(0))
    assert_same(fast.step(action), eager.step(action))


def test_rollout_buffers_receive_what_steps_return():
    one, two = (VmasEnv("simple_spread", num_envs=33, max_steps=6, seed=1, fast="kernel") for _ in range(2))
    one.reset(2), two.reset(2)
    T, (name, group) = 9, next(iter(one.spec.groups.items()))
    shape = (33, group.n_agents, group.observation_size)
    observed, after = torch.zeros(T + 1, *shape), torch.zeros(T, *shape)
    reward = torch.zeros(T, 33, group.n_agents)
    ended, over = torch.zeros(T, 33, dtype=torch.bool), torch.zeros(T, 33, dtype=torch.bool)
    one.stepper.bind_rollout({name: observed[1:]}, {name: after}, {name: reward}, ended, over)
    generator = torch.Generator().manual_seed(0)
    for t in range(T):
        action = one.random_action(generator)
        one.stepper.step_into(t, action)
        step = two.step(action)
        assert torch.equal(observed[t + 1], step.observation[name]) and torch.equal(
            after[t], step.next_observation[name]
        )
        assert torch.equal(reward[t], step.reward[name])
        assert torch.equal(ended[t], step.terminated) and torch.equal(over[t], step.truncated)


@pytest.mark.parametrize("num_envs", [1, 15, 16, 17, 64])
def test_any_number_of_environments(num_envs):
    fast, eager = pair(num_envs, scenario="simple_spread")
    action = eager.random_action(torch.Generator().manual_seed(0))
    assert_same(fast.step(action), eager.step(action))


def test_threads_change_nothing():
    env = VmasEnv("simple_spread", num_envs=200, fast="kernel")
    saved, action = env.snapshot(), env.random_action(torch.Generator().manual_seed(0))
    one = env.step(action)
    env.restore(saved)
    env.stepper.kernel.threads = 2
    two = env.step(action)
    assert torch.equal(one.observation["agents"], two.observation["agents"])


def test_a_state_that_resets_never_give_gets_a_kernel_that_assumes_nothing():
    fast, eager = pair(scenario="simple_spread")
    for env in (fast, eager):
        for landmark in env.simulator.world.landmarks:
            landmark.state.rot = landmark.state.rot + 0.5
        for agent in env.simulator.agents:
            agent.state.rot = agent.state.rot + 0.5
    action = eager.random_action(torch.Generator().manual_seed(0))
    assert_same(fast.step(action), eager.step(action))


def test_why_there_is_no_kernel_is_reported_in_one_sentence():
    with pytest.raises(EnvError, match="_mass for the whole batch from a continuous range"):
        VmasEnv("debug/het_mass", num_envs=2, fast="kernel")


def test_many_pairs_of_bodies_are_no_endless_loop(monkeypatch, tmp_path):
    """The physics ask once per pair of bodies, thousands of times in debug/pollock; simple_tag asks more than 4 times."""
    monkeypatch.setattr(rewrite, "ENDLESS", 4)
    with kernels_made_anew(tmp_path):
        monkeypatch.setenv("MARL_KERNEL_CACHE", str(tmp_path))
        fewer = {"num_adversaries": 2, "num_landmarks": 1}
        assert VmasEnv("simple_tag", num_envs=2, scenario_kwargs=fewer, fast="kernel").path == "kernel"


def test_a_broken_compiler_is_reported(monkeypatch):
    monkeypatch.setenv("CXX", shutil.which("false"))
    with pytest.raises(CannotCompile, match="false failed"):
        compile_library("int x;")


def test_a_new_process_finds_the_kernel_on_disk():
    settings = {"scenario": "simple_spread", "max_steps": 100, "num_envs": 3}
    compilation = compiled(VmasEnv(**settings, fast="off").world)
    assert (cache_folder() / compilation.binary).exists()
    code = (
        "import envs.kernel.compile as m; from envs.vmas.env import VmasEnv; m._make = None; "
        f"print(m.compiled(VmasEnv(**{settings}, fast='off').world).binary)"
    )
    binaries = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert binaries == [compilation.binary]


ROLLOUT = 10  # steps


def rollout(env, action):
    """One rollout of `ROLLOUT` equal steps, as training makes them."""
    observation, _ = env.reset() if not hasattr(env, "began") else (env.began, None)
    env.began = observation
    ((name, observed),) = observation.items()
    shape = (ROLLOUT + 1, *observed.shape)
    buffers = torch.empty(shape), torch.empty(ROLLOUT, *observed.shape), torch.empty(ROLLOUT, *observed.shape[:2])
    ended, over = torch.empty(2, ROLLOUT, env.num_envs, dtype=torch.bool).unbind()
    env.bind_rollout({name: buffers[0][1:]}, {name: buffers[1]}, {name: buffers[2]}, ended, over)
    for t in range(ROLLOUT):
        env.step_into(t, action)
    return buffers[2]


def test_a_kernel_is_compared_with_the_simulator_again_and_again():
    env = VmasEnv("balance", num_envs=4, seed=0)
    assert env.figures() == {"kernel_checks": 1.0}  # before its first use
    env.stepper.recheck.affordable = lambda: True
    action = env.random_action(torch.Generator().manual_seed(0))
    counts = []
    for _ in range(20):
        rollout(env, action)
        counts.append(env.figures()["kernel_checks"])
    assert counts == [2.0] * 9 + [3.0] * 11  # on the first and the tenth rollout


def test_comparisons_leave_no_trace():
    states = []
    for often in (False, True):
        env = VmasEnv("navigation", num_envs=5, seed=0, max_steps=20)
        generator = torch.Generator().manual_seed(0)
        for _ in range(30):
            env.stepper.recheck.due = often
            env.stepper.recheck.affordable = lambda: True
            env.step(env.random_action(generator))
        states.append(env.snapshot())
        assert env.figures()["kernel_checks"] == 1 + 30 * often
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(
            value.nan_to_num() if value.is_floating_point() else value,
            states[1][key].nan_to_num() if value.is_floating_point() else states[1][key],
        ), key


def test_a_scenario_that_changes_in_the_run_ends_it_in_one_sentence(monkeypatch):
    env = VmasEnv("dispersion", num_envs=4, seed=0)
    env.stepper.recheck.affordable = lambda: True
    action = env.random_action(torch.Generator().manual_seed(0))
    for _ in range(5):
        rollout(env, action)
    scenario = type(env.world.simulator.scenario)
    reward = scenario.reward
    monkeypatch.setattr(scenario, "reward", lambda self, agent: reward(self, agent) + 1.0)
    with pytest.raises(
        EnvError, match=r"has changed since its kernel was built.*dispersion\.py.*resume=RUN_DIR env\.fast=off"
    ) as error:
        for _ in range(6):
            rollout(env, action)
    assert "\n" not in str(error.value)


def test_one_environment_alone_is_compared_twice_before_it_ends_a_run(monkeypatch):
    env = VmasEnv("dispersion", num_envs=1, seed=0)
    env.stepper.recheck.affordable = lambda: True
    action = env.random_action(torch.Generator().manual_seed(0))
    scenario = type(env.world.simulator.scenario)
    reward = scenario.reward
    rollout(env, action)
    monkeypatch.setattr(scenario, "reward", lambda self, agent: reward(self, agent) + 1.0)
    with pytest.raises(EnvError, match="in 2 of 3 steps"):
        for _ in range(10):
            rollout(env, action)


def test_an_action_that_is_no_number_is_rejected_the_same_on_a_step_that_is_compared():
    env = VmasEnv("dispersion", num_envs=3, seed=0)
    action = env.random_action(torch.Generator().manual_seed(0))
    env.stepper.recheck.due = True
    with pytest.raises(ActionError, match="not a number"):
        env.step({name: torch.full_like(value, torch.nan) for name, value in action.items()})
    env.step(action)
    assert env.figures() == {"kernel_checks": 2.0}


def test_comparisons_cost_a_hundredth_of_the_time_at_most():
    env = VmasEnv("dispersion", num_envs=4, seed=0)
    env.stepper.recheck.spent = 1e6  # a simulator that takes long
    action = env.random_action(torch.Generator().manual_seed(0))
    for _ in range(10):
        rollout(env, action)
    assert env.figures()["kernel_checks"] == 1.0 and env.stepper.recheck.due  # put off, not forgotten
