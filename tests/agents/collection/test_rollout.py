"""Rollouts: what is stored is what happened, keys are TorchRL's, episode returns equal a plain loop."""

import pytest
import torch

from agents.algorithms.ppo import PPO
from agents.collection.collector import Collector
from agents.collection.episode_statistics import EpisodeReturns
from agents.collection.rollout_buffer import RolloutBuffer
from envs.vmas.env import VmasEnv
from marl.networks import MLP


def build(num_envs=5, steps=12, max_steps=7, **env):
    torch.manual_seed(0)
    env = VmasEnv("balance", num_envs=num_envs, max_steps=max_steps, seed=1, **env)
    loss = PPO().make_loss(env.spec, lambda i, o: MLP(i, o, hidden=[16]))
    rollout = RolloutBuffer(env.spec, num_envs, env.device, steps, loss.actors)
    return Collector(env, loss.actors, rollout), loss


def test_rollout_equals_stepping_by_hand():
    roll, loss = build(global_state=True)
    roll.reset(3)
    data = roll.collect(torch.Generator().manual_seed(5))
    other, _ = build(global_state=True)
    other.env.reset(3)
    head = loss.actors["agents"].head
    noise = head.noise((12, 5, 3), "cpu", torch.Generator().manual_seed(5))
    observation, state = other.env.reset(3)
    for t in range(12):
        raw, log_prob = loss.actors["agents"].act(observation["agents"], noise=noise[t])
        assert torch.equal(data["agents", "observation"][t], observation["agents"])
        assert torch.equal(data["state"][t], state)
        torch.testing.assert_close(data["agents", "action"][t], raw)
        torch.testing.assert_close(data["agents", "log_prob"][t], log_prob)
        step = other.env.step({"agents": head.to_env(raw)})
        assert torch.equal(data["next", "agents", "observation"][t], step.next_observation["agents"])
        assert torch.equal(data["next", "agents", "reward"][t, ..., 0], step.reward["agents"])
        assert torch.equal(data["next", "state"][t], step.next_state)
        assert torch.equal(data["next", "done"][t, :, 0], step.done)
        observation, state = step.observation, step.state
    assert data["next", "truncated"].any()


def test_an_environment_may_keep_the_actions_that_it_is_given():
    roll, loss = build()
    roll.reset(0)
    saved, step_into = [], roll.env.step_into
    roll.env.step_into = lambda t, actions: (saved.append(actions["agents"]), step_into(t, actions))
    roll.collect(torch.Generator().manual_seed(0))
    replayed = next(iter(roll._graphed["agents"].graphs.values()))
    assert replayed.runs == 9 and len(saved) == 12  # from the fourth step on
    for action, raw in zip(saved, roll.rollout.action["agents"], strict=True):
        assert torch.equal(action, loss.actors["agents"].head.to_env(raw))


def test_next_observation_is_the_true_one_at_an_end():
    roll, _ = build()
    roll.reset(0)
    data = roll.collect(torch.Generator().manual_seed(0))
    done = data["next", "done"][:-1, :, 0]
    after, observed = data["next", "agents", "observation"][:-1], data["agents", "observation"][1:]
    assert done.any() and not done.all()
    assert torch.equal(after[~done], observed[~done])
    assert not torch.equal(after[done], observed[done])


def test_rollouts_continue_and_storage_is_reused():
    roll, _ = build(steps=4)
    roll.reset(0)
    generator = torch.Generator().manual_seed(0)
    address = roll.rollout.data["agents", "observation"].data_ptr()
    first = roll.collect(generator).clone()
    second = roll.collect(generator)
    assert second["agents", "observation"].data_ptr() == address
    running = ~first["next", "done"][-1, :, 0]
    last, next_first = first["next", "agents", "observation"][-1], second["agents", "observation"][0]
    assert torch.equal(last[running], next_first[running])


def test_state_dict_continues_to_the_bit():
    roll, _ = build()
    roll.reset(0)
    roll.collect(torch.Generator().manual_seed(0))
    state = roll.state_dict()
    expected = roll.collect(torch.Generator().manual_seed(1)).clone()
    roll.collect(torch.Generator().manual_seed(2))
    roll.load_state_dict(state)
    again = roll.collect(torch.Generator().manual_seed(1))
    assert (expected == again).all()


@pytest.mark.parametrize("seed", range(3))
def test_episode_returns_equal_a_loop(seed):
    g = torch.Generator().manual_seed(seed)
    accounting, running = EpisodeReturns(4, 2, torch.device("cpu")), torch.zeros(4, 2)
    for _ in range(3):  # carried over from rollout to rollout
        reward = torch.randn(9, 4, 2, generator=g)
        done = torch.rand(9, 4, generator=g) < 0.3
        returns = accounting.add(reward, done)
        for t in range(9):
            running = running + reward[t]
            torch.testing.assert_close(returns[t], running)
            running = running * ~done[t].unsqueeze(-1)
        torch.testing.assert_close(accounting.carry, running)
