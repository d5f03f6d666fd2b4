"""Environments in Python objects: spaces, episode ends, snapshots that play again, and what is refused."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.envs.utils import check_env_specs

from envs.adapters.copies.action_rows import in_space
from envs.adapters.gymnasium_env import GymnasiumEnv, PettingZooEnv
from envs.adapters.object_env import action_spec
from envs.adapters.to_torchrl import TorchRLEnv
from envs.base import ActionError, EnvError
from marl.core.errors import UserError

SPREAD = "mpe2.simple_spread_v3.parallel_env"


def random_steps(env, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [env.step(env.random_action(generator)) for _ in range(count)]


def test_steps_are_gymnasiums_own():
    env = GymnasiumEnv("CartPole-v1", num_envs=2, seed=3)
    first = env.reset(3)[0]["agents"]
    raw = gymnasium.make("CartPole-v1")
    observation, _ = raw.reset(seed=env._episode_seed(1))
    np.testing.assert_array_equal(first[1, 0].numpy(), observation)
    for _ in range(8):
        moved = env.step({"agents": torch.ones(2, 1, 1, dtype=torch.int64)})
        observation, reward, terminated, _, _ = raw.step(1)
        np.testing.assert_array_equal(moved.next_observation["agents"][1, 0].numpy(), observation)
        assert moved.reward["agents"][1, 0] == reward and bool(moved.terminated[1]) == terminated


def test_what_ends_restarts_on_its_own_and_the_time_limit_truncates():
    env = GymnasiumEnv("CartPole-v1", num_envs=5, max_steps=12, seed=0)
    steps = random_steps(env, 60)
    assert any(s.terminated.any() for s in steps) and any(s.truncated.any() for s in steps)
    for moved in steps:
        assert not (moved.terminated & moved.truncated).any()
        same = (moved.observation["agents"] == moved.next_observation["agents"]).all(-1).squeeze(-1)
        assert torch.equal(same, ~moved.done)
        assert (moved.observation["agents"][moved.done].abs() <= 0.05).all()  # where CartPole begins


def test_every_episode_has_another_seed_and_a_seed_repeats_all():
    env = GymnasiumEnv("CartPole-v1", num_envs=3, seed=0)
    one = [m.next_observation["agents"] for m in random_steps(env, 40)]
    env.reset(0)
    two = [m.next_observation["agents"] for m in random_steps(env, 40)]
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    starts = torch.cat([env.reset()[0]["agents"] for _ in range(3)])
    assert len(starts.flatten(1).unique(dim=0)) == 9


@pytest.mark.parametrize("name", ["Pendulum-v1", "CartPole-v1"])
def test_a_snapshot_goes_on_to_the_bit(name):
    env, other = GymnasiumEnv(name, num_envs=3, max_steps=15), GymnasiumEnv(name, num_envs=3, max_steps=15, seed=9)
    random_steps(env, 22)
    saved = env.snapshot()
    expected = random_steps(env, 25, seed=1)
    other.restore(saved)
    for a, b in zip(expected, random_steps(other, 25, seed=1), strict=True):
        assert torch.equal(a.observation["agents"], b.observation["agents"])
        assert torch.equal(a.reward["agents"], b.reward["agents"]) and torch.equal(a.done, b.done)
    with pytest.raises(EnvError, match="another environment's"):
        GymnasiumEnv(name, num_envs=2).restore(saved)


@pytest.mark.parametrize(
    ("space", "kind", "size"),
    [
        (spaces.Discrete(3, start=-1), "discrete", 1),
        (spaces.MultiDiscrete([2, 5]), "multi_discrete", 2),
        (spaces.MultiBinary(3), "multi_discrete", 3),
        (spaces.Box(-2.0, 1.0, (2, 2)), "continuous", 4),
    ],
)
def test_actions_arrive_in_their_space(space, kind, size):
    spec = action_spec(space, "here")
    assert (spec.kind, spec.size) == (kind, size)
    lowest = np.zeros(size) if kind != "continuous" else spec.low[0].double().numpy()
    highest = np.array(spec.nvec) - 1.0 if kind != "continuous" else spec.high[0].double().numpy()
    for numbers in (lowest, highest):
        assert space.contains(in_space(numbers, space))


def test_pettingzoo_agents_are_a_group_of_the_contract():
    pytest.importorskip("mpe2", reason="PettingZoo's extra is not installed")
    env = PettingZooEnv(SPREAD, num_envs=2, max_steps=10, kwargs={"max_cycles": 25}, seed=1)
    assert env.spec.groups["agents"].agents == ("agent_0", "agent_1", "agent_2")
    steps = random_steps(env, 11)
    assert steps[9].truncated.all() and not steps[9].terminated.any()
    assert steps[0].reward["agents"].shape == (2, 3) and steps[0].next_observation["agents"].shape == (2, 3, 18)
    check_env_specs(TorchRLEnv(PettingZooEnv(SPREAD, num_envs=2, max_steps=4)))


def test_pettingzoos_own_limit_truncates_too():
    pytest.importorskip("mpe2", reason="PettingZoo's extra is not installed")
    env = PettingZooEnv(SPREAD, num_envs=2, max_steps=None, kwargs={"max_cycles": 5})
    steps = random_steps(env, 5)
    assert steps[-1].truncated.all() and not any(s.done.any() for s in steps[:-1])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GymnasiumEnv("CartPol-v1"), r"env\.id='CartPol-v1'.*CartPole"),
        (lambda: GymnasiumEnv("CartPole-v1", kwargs={"speed": 2}), r"env\.id='CartPole-v1'.*speed"),
        (lambda: GymnasiumEnv("CartPole-v1", device="cuda"), r"device=cuda.*CPU"),
        (lambda: PettingZooEnv("nowhere.env"), r"no module 'nowhere'"),
        (lambda: PettingZooEnv("math.nothing"), r"math is Python's own"),
        (lambda: PettingZooEnv("numpy.load", kwargs={"file": "x"}), r"env.env=numpy.load: must be a subclass"),
        (lambda: GymnasiumEnv("antigravity:Mine-v0"), r"antigravity is Python's own"),
        (lambda: action_spec(spaces.Text(3), "here"), "here.*Box, Discrete"),
    ],
)
def test_mistakes_are_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_wrong_actions_are_refused():
    env = GymnasiumEnv("Pendulum-v1", num_envs=2)
    with pytest.raises(EnvError, match=r"'agents': \[2, 1, 1\]"):
        env.step({"agents": torch.zeros(2, 1)})
    with pytest.raises(EnvError, match="not a number"):
        env.step({"agents": torch.full((2, 1, 1), torch.nan)})


@pytest.mark.parametrize("choice", [-1, 2])
def test_what_is_no_choice_is_refused_before_it_is_played(choice):
    env = GymnasiumEnv("CartPole-v1", num_envs=2)
    played = env.snapshot()
    with pytest.raises(ActionError, match="'agents': not a number, or outside of the allowed choices"):
        env.step({"agents": torch.tensor([[[0]], [[choice]]])})
    assert all(torch.equal(value, played[name]) for name, value in env.snapshot().items())
