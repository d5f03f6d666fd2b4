"""Advantages of agents that act in turn: by hand, and as everyone's where all act all the time."""

import pytest
import torch

from agents.algorithms.advantages import gae
from agents.algorithms.turn_advantages import turn_gae

GAMMA = LAM = 0.5


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1)


def flags(length, *true):
    return torch.tensor([t in true for t in range(length)])


def played(rewards, values, bootstraps, turns, terminated=(), truncated=()):
    """[T] lists for each agent; the same ends for all. Returns advantage and returns of each agent, [A][T]."""
    reward, value, ahead, turn = (torch.tensor(x).T.unsqueeze(1) for x in (rewards, values, bootstraps, turns))
    T = len(reward)
    ends = flags(T, *terminated).unsqueeze(1), flags(T, *terminated, *truncated).unsqueeze(1)
    result = turn_gae(reward.float(), value.float(), ahead.float(), turn.bool(), *ends, GAMMA, LAM)
    return [x[:, 0].T.tolist() for x in result]


def test_two_in_turn_until_the_first_wins():
    # a acts at 0, 2, 4 and wins with its last move; b acts at 1, 3 and loses by it. Game over at 4.
    advantage, returns = played(
        rewards=[[0, 0, 0, 0, 1], [0, 0, 0, 0, -1]],
        values=[[0.5, 9, 0.25, 9, 0.75], [9, 0.5, 9, 0.25, 9]],
        bootstraps=[[9, 0.25, 9, 0.75, 9], [0.5, 9, 0.25, 9, 9]],
        turns=[[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]],
        terminated=[4],
    )
    # a: at 4, 1 - 0.75 = 0.25; at 2, 0.5 * 0.75 - 0.25 + 0.25 * 0.25 = 0.1875; at 0, 0.125 - 0.5 + 0.25 * 0.1875
    assert advantage[0] == [-0.328125, 0, 0.1875, 0, 0.25]
    # b: at 3, -1 - 0.25 = -1.25; at 1, 0.5 * 0.25 - 0.5 + 0.25 * -1.25 = -0.6875
    assert advantage[1] == [0, -0.6875, 0, -1.25, 0]
    assert returns[0] == [0.171875, 9, 0.4375, 9, 1.0] and returns[1] == [9, -0.1875, 9, -1.0, 9]


def test_cut_off_between_own_turns():
    # The episode is truncated after b's move at 1; V of the true final observation is 4 for a and 6 for b.
    advantage, _ = played(
        rewards=[[1, 2, 0], [3, 5, 0]], values=[[10, 0, 1], [0, 20, 0]], bootstraps=[[7, 4, 2], [7, 6, 8]],
        turns=[[1, 0, 1], [0, 1, 0]], truncated=[1],
    )  # fmt: skip
    # a: 1 + 2 + 0.5 * 4 - 10 = -5. b: 5 + 0.5 * 6 - 20 = -12; its 3 from before its first turn belong to no turn.
    # The new episode's first step: a sees 2 at the rollout's end: 0 + 0.5 * 2 - 1 = 0.
    assert advantage == [[-5, 0, 0], [0, -12, 0]]


def test_the_rollout_ends_between_own_turns():
    # a acted at 0 and would act at 3 again: the value of what it sees at the end, 8, stands in.
    advantage, _ = played(
        rewards=[[1, 2, 4]], values=[[5, 0, 0]], bootstraps=[[70, 70, 8]], turns=[[1, 0, 0]],
    )  # fmt: skip
    assert advantage == [[1 + 2 + 4 + 0.5 * 8 - 5, 0, 0]]


def test_three_with_irregular_turns():
    # Turns: a, a, c, b, c, a; terminated at 4, so that 5 begins a new episode.
    advantage, _ = played(
        rewards=[[1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 2], [0, 0, 0, 0, 6, 0]],
        values=[[2, 4, 0, 0, 0, 8], [0, 0, 0, 16, 0, 0], [0, 0, 2, 0, 4, 0]],
        bootstraps=[[4, 0, 0, 0, 99, 2], [0, 0, 16, 0, 99, 0], [0, 2, 0, 4, 99, 0]],
        turns=[[1, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 1, 0]],
        terminated=[4],
    )
    # a: at 5, 1 + 1 - 8 = -6; at 1, 1 + 1 + 1 + 1 - 4 = 0; at 0, 1 + 0.5 * 4 - 2 + 0 = 1
    # b: at 3, 2 + 2 - 16 = -12
    # c: at 4, 6 - 4 = 2; at 2, 0 + 0.5 * 4 - 2 + 0.25 * 2 = 0.5
    assert advantage == [[1, 0, 0, 0, 0, -6], [0, 0, 0, -12, 0, 0], [0, 0, 0.5, 0, 2, 0]]


def test_an_agent_that_leaves_waits_for_no_turn():
    reward, value, ahead = column(1, 2, 4, 8), column(0, 0, 0, 0), column(50, 50, 50, 50)
    turn, left = column(1, 0, 0, 0).bool(), column(0, 1, 0, 0).bool()
    shaped = [x.unsqueeze(-1) for x in (reward, value, ahead, turn, left, left)]
    advantage, _ = turn_gae(*shaped, GAMMA, LAM)
    assert advantage.flatten().tolist() == [3, 0, 0, 0]


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_gae_where_it_is_always_everyones_turn(seed):
    g, (T, E, A) = torch.Generator().manual_seed(seed), (25, 6, 3)
    reward, value, ahead = torch.randn(3, T, E, A, generator=g)
    terminated = torch.rand(T, E, generator=g) < 0.1
    done = terminated | (torch.rand(T, E, generator=g) < 0.1)
    everyone = torch.ones(T, E, A, dtype=torch.bool)
    ours = turn_gae(reward, value, ahead, everyone, terminated, done, 0.97, 0.9)
    for x, y in zip(ours, gae(reward, value, ahead, terminated, done, 0.97, 0.9), strict=True):
        torch.testing.assert_close(x, y)


def test_others_steps_between_change_nothing():
    """The same game with two idle steps after each turn has the same advantages, whatever is seen meanwhile."""
    g, T = torch.Generator().manual_seed(3), 8
    reward, value, ahead = torch.randn(3, T, 1, 1, generator=g)
    ahead[:-1] = value[1:]
    terminated = flags(T, 4).unsqueeze(1)
    plain, _ = gae(reward, value, ahead, terminated, terminated, 0.9, 0.8)

    def spread(x, fill, place):
        wide = torch.full((T, 3, 1, 1), fill, dtype=x.dtype)
        wide[:, place] = x
        return wide.flatten(0, 1)

    turn = torch.arange(3 * T).view(-1, 1, 1) % 3 == 0
    ends = spread(terminated.unsqueeze(-1), False, 2).squeeze(-1)
    # The reward comes while the agent waits, and what it then sees is worth something else.
    long = spread(reward, 0.0, 1), spread(value, 9.0, 0), spread(ahead, 9.0, 2)
    got, _ = turn_gae(*long, turn, ends, ends, 0.9, 0.8)
    torch.testing.assert_close(got[::3], plain)
