"""Steps of no episode (the environment only resets itself): not counted, not remembered, not learnt from."""

import gymnasium
import pytest
import torch
from torch.testing import assert_close

from marl.config import compose
from marl.launch import build
from tests.envs.vector_cases import make

COUNTDOWN = [
    "env=gymnasium_vector", "env.id=Countdown-v0", "env.max_steps=20", "env.num_envs=4", "algo=ippo", "network=gru",
    "network.hidden=8", "algo.rollout_steps=64", "algo.minibatch_size=64", "frames=512", "task.eval_episodes=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Countdown-v0", vector_entry_point=make)
    yield
    del gymnasium.registry["Countdown-v0"]


def collected(mode):
    task = build.build_task(compose.check(compose.compose([*COUNTDOWN, f"+env.kwargs.mode={mode}"])))
    task.collect(0)
    return task, task.rollout


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_lengths_are_those_of_the_episodes(mode):
    task, roll = collected(mode)
    lengths, first_number = [], roll.observed["agents"][0, :, 0, 0].clone()
    for t in range(64):
        waits = roll.observed["agents"][t, :, 0, 0] == 0
        first_number = torch.where(waits, roll.observed["agents"][t + 1, :, 0, 0], first_number)
        lengths += first_number[roll.done[t]].tolist()  # what a countdown begins with is its length
        first_number = torch.where(roll.done[t], roll.observed["agents"][t + 1, :, 0, 0], first_number)
    assert task.figures["episodes"] == len(lengths) > 30
    assert_close(task.figures["episode_length"], torch.tensor(lengths).mean())
    assert roll.idle(slice(0, -1)).any() == (mode == "NextStep")


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_every_episode_begins_without_a_memory(mode):
    task, roll = collected(mode)
    actor, x = task.loss.actors["agents"], roll.observed["agents"][:-1]
    begins = (x[..., 0, 1] == 0) & (x[..., 0, 0] > 0)  # no action before it, and a number to count down from
    fresh = actor.remember(x[begins], torch.zeros(int(begins.sum()), *actor.memory_shape))[0]
    assert begins.sum() > 30
    assert_close(roll.params["agents"][begins], fresh, rtol=1e-5, atol=1e-6)
    first = next(iter(task.batches(0)))  # trained on as it was played: nothing has changed before the first step
    assert_close(task.loss(first)["approx_kl"], torch.tensor(0.0), atol=1e-6, rtol=0)


def test_nobody_learns_from_what_the_waiting_did():
    task, roll = collected("NextStep")
    idle = roll.idle(slice(0, -1))
    assert idle.any()
    rows = next(iter(task.batches(0)))
    whole = task.loss(rows)
    waiting = ~rows["agents"]["alive"]
    rows["agents"]["log_prob"] = rows["agents"]["log_prob"] + 3.0 * waiting  # a ratio far from one
    rows["agents"]["advantage"] = rows["agents"]["advantage"] + 9.0 * waiting
    assert waiting.any() and all(torch.equal(whole[key], value) for key, value in task.loss(rows).items())
