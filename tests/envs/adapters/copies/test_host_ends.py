"""Agents of PettingZoo's environments end each on its own, as the contract tells it."""

import pytest
import torch

from envs.adapters.gymnasium_env import GymnasiumEnv, PettingZooEnv

GROUP = "agents"


def make(num_envs=2, max_steps=None, workers=0, **kwargs):
    return PettingZooEnv("tests.envs.host_cases.Parting", num_envs, max_steps, kwargs=kwargs, workers=workers)


def play(env, steps):
    """Rows of the first copy, step by step: who was alive before, and the transition's fields."""
    rows = []
    for _ in range(steps):
        alive = env.masks()[GROUP]["alive"][0].tolist()
        moved = env.step(env.random_action())
        row = [
            moved.observation[GROUP][0, :, 0],
            moved.next_observation[GROUP][0, :, 0],
            moved.reward[GROUP][0],
            moved.agent_terminated[GROUP][0],
            moved.agent_truncated[GROUP][0],
        ]
        rows.append([alive, *(value.tolist() for value in row), bool(moved.terminated[0]), bool(moved.truncated[0])])
    return rows


T, F = True, False


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_ends_in_its_own_way(leaves, workers):
    """One terminated, one cut off, one to the end; whether `agents` goes on naming them or not."""
    env = make(leaves=leaves, workers=workers)
    try:
        assert env.spec.groups[GROUP].ends and env.spec.groups[GROUP].masks == ("alive",)
        rows = play(env, 6)
    finally:
        env.close()
    assert rows == [
        # alive before, observation after, where it led, reward, terminated, truncated, the environment's
        [[T, T, T], [2, 2, 2], [2, 2, 2], [1, 1, 1], [F, F, F], [F, F, F], F, F],
        [[T, T, T], [0, 3, 3], [3, 3, 3], [1, 1, 1], [T, F, F], [F, F, F], F, F],
        [[F, T, T], [0, 4, 4], [0, 4, 4], [0, 1, 1], [F, F, F], [F, F, F], F, F],
        [[F, T, T], [0, 0, 5], [0, 5, 5], [0, 1, 1], [F, F, F], [F, T, F], F, F],
        [[F, F, T], [1, 1, 1], [0, 0, 6], [0, 0, 1], [F, F, T], [F, F, F], T, F],
        [[T, T, T], [2, 2, 2], [2, 2, 2], [1, 1, 1], [F, F, F], [F, F, F], F, F],
    ]


def test_the_time_limit_cuts_off_who_is_left():
    rows = play(make(max_steps=3), 4)
    assert rows[2][3:] == [[0, 1, 1], [F, F, F], [F, T, T], F, T] and rows[2][2] == [0, 4, 4]
    assert rows[3][0] == [T, T, T]


def test_who_is_named_again_begins_again():
    rows = play(make(back=3), 5)
    assert [row[0][0] for row in rows] == [T, T, F, T, F]
    assert rows[2][1][0] == rows[2][2][0] == 11 and rows[2][3][0] == 0  # what it sees first; the step was not its own
    assert [row[4][0] for row in rows] == [F, T, F, T, F] and rows[3][2][0] == 12 and rows[3][3][0] == 1


def test_all_ends_while_all_are_still_named():
    """Nothing ended before: a return of 21,000 where 4 is right."""
    env = PettingZooEnv("tests.envs.host_cases.Endless", 3, max_steps=None)
    total, ended = torch.zeros(3, 2), []
    for t in range(1, 21):
        moved = env.step(env.random_action())
        total += moved.reward[GROUP]
        if moved.terminated.any():
            assert moved.terminated.all() and moved.agent_terminated[GROUP].all() and (total == 4).all()
            total, ended = torch.zeros(3, 2), [*ended, t]
    assert ended == [4, 8, 12, 16, 20]


def test_a_snapshot_knows_who_has_ended():
    env, other = make(back=3, leaves=True), make(back=3, leaves=True)
    play(env, 3)
    other.restore(env.snapshot())
    assert play(env, 9) == play(other, 9)


def test_a_single_agent_of_gymnasium_has_no_ends_of_its_own():
    env = GymnasiumEnv("CartPole-v1", num_envs=2, max_steps=3)
    moved = env.step(env.random_action())
    assert not env.spec.groups[GROUP].ends and env.masks() == {GROUP: {}}
    assert moved.agent_terminated == {} and moved.agent_truncated == {}
