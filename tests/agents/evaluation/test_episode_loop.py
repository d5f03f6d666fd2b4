"""The one loop over episodes: what it hands out, when it ends, and who plays in it."""

from functools import partial

import pytest
import torch

from agents.evaluation.episode_loop import CHECK_EVERY, Players, episode_steps, require_time_limit
from envs.vmas.env import VmasEnv
from marl.core.errors import UserError

ENV = partial(VmasEnv, "balance", num_envs=4, seed=0, fast="off")


def run(env, steps=None, push=0.0):
    moments, transitions = [], []

    def act(now):
        moments.append(now)
        return {"agents": torch.full((4, 3, 2), push)}

    for running, transition in episode_steps(env, act, 1, steps):
        assert running is moments[-1].running
        transitions.append(transition)
    return moments, transitions


def test_it_ends_when_all_first_episodes_have_ended():
    moments, transitions = run(ENV(max_steps=10, fast="auto"))
    running, done = torch.stack([m.running for m in moments]), torch.stack([t.done for t in transitions])
    assert len(moments) == 10 and running[0].all()
    for t in range(1, 10):
        assert torch.equal(running[t], running[t - 1] & ~done[t - 1])
    assert not (running[-1] & ~done[-1]).any()


def test_it_looks_only_now_and_then_whether_all_have_ended():
    moments, _ = run(ENV(max_steps=500), push=1.0)  # which drops what the agents carry
    running = torch.stack([m.running for m in moments])
    assert len(moments) % CHECK_EVERY == 0 and len(moments) < 500 and running[-CHECK_EVERY].any()


def test_a_number_of_steps_is_kept_whatever_ends():
    moments, _ = run(ENV(max_steps=3), steps=20)
    assert len(moments) == 20 and not moments[-1].running.any()


def test_players_may_be_functions():
    players = Players({"agents": lambda observation, generator: observation[..., :2]})
    players.begin(4, torch.device("cpu"))
    observation = {"agents": torch.rand(4, 3, 5)}
    chosen = players(observation, {}, None)
    assert torch.equal(chosen["agents"][0], observation["agents"][..., :2]) and chosen["agents"][1] is None
    assert players.actions(observation, {}, None)["agents"] is not chosen


def test_episodes_that_need_not_end_are_refused():
    with pytest.raises(UserError, match="env.max_steps=null: recording needs a time limit"):
        require_time_limit(ENV(max_steps=None), "recording")
