"""Environments whose agents act in turn, as the contract tells them: who acts, what is masked, who gets what, ends."""

import pytest
import torch

from envs.adapters.gymnasium_env import PettingZooEnv
from envs.base import ActionError, EnvError
from envs.spec import describe, spec_of

NIM, ROUND = "tests.envs.turn_cases.Nim", "tests.envs.turn_cases.Round"


def nim(num_envs=3, stones=5, **settings):
    return PettingZooEnv(NIM, num_envs=num_envs, max_steps=20, kwargs={"stones": stones}, **settings)


def test_one_acts_the_other_watches_and_both_are_paid():
    env = nim()
    group = env.spec.groups["agents"]
    assert group.masks == ("action", "alive", "turn") and group.observation_size == 6 and group.action.nvec == (3,)
    assert spec_of(describe(env.spec)).groups["agents"].masks == group.masks
    take = torch.tensor([[[2], [0]], [[0], [2]], [[0], [0]]])  # three stones in game 0, one in the others
    masks = env.masks()["agents"]
    assert masks["turn"].tolist() == [[True, False]] * 3 and masks["alive"].all() and masks["action"].all()
    moved = env.step({"agents": take})
    assert moved.observation["agents"].argmax(-1).tolist() == [[2, 2], [4, 4], [4, 4]]  # both see the stones left
    masks = env.masks()["agents"]
    assert masks["turn"].tolist() == [[False, True]] * 3
    assert masks["action"][0].tolist() == [[True] * 3, [True, True, False]]  # nothing is masked for who watches
    moved = env.step({"agents": torch.tensor([[[0], [1]], [[0], [2]], [[2], [2]]])})
    assert moved.reward["agents"].tolist() == [[-1, 1], [0, 0], [0, 0]]
    assert moved.terminated.tolist() == [True, False, False] and not moved.truncated.any()
    assert moved.next_observation["agents"][0].argmax(-1).tolist() == [0, 0]
    assert moved.observation["agents"][0].argmax(-1).tolist() == [5, 5]  # the next game, which player_0 begins
    assert env.masks()["agents"]["turn"].tolist() == [[True, False]] * 3


def test_what_who_watches_does_is_ignored_and_what_the_actor_does_is_not():
    env, other = nim(num_envs=1), nim(num_envs=1)
    watched = env.step({"agents": torch.tensor([[[0], [-1]]])})
    assert torch.equal(
        watched.observation["agents"], other.step({"agents": torch.tensor([[[0], [0]]])}).observation["agents"]
    )
    with pytest.raises(ActionError, match="outside of the allowed choices"):
        env.step({"agents": torch.tensor([[[0], [-1]]])})  # its turn now


def test_random_play_keeps_to_the_masks_in_this_and_other_processes():
    here, there = nim(num_envs=4, stones=7), nim(num_envs=4, stones=7, workers=2)
    try:
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        for _ in range(60):  # a move that is not there would fail
            moves = [env.step(env.random_action(g)) for env, g in zip((here, there), generators, strict=True)]
            assert torch.equal(moves[0].reward["agents"], moves[1].reward["agents"])
            assert torch.equal(here.masks()["agents"]["turn"], there.masks()["agents"]["turn"])
    finally:
        there.close()


def test_two_players_can_be_two_groups():
    env = nim(groups={"first": ["player_0"], "second": ["player_1"]})
    assert list(env.spec.groups) == ["first", "second"]
    masks = env.masks()
    assert masks["first"]["turn"].all() and not masks["second"]["turn"].any() and masks["second"]["action"].all()
    env.step(env.random_action())
    assert env.masks()["second"]["turn"].all()
    with pytest.raises(EnvError, match=r"env\.groups=.* must put every agent into exactly one group, but 'player_1'"):
        nim(groups={"first": ["player_0"]})


@pytest.mark.parametrize("cut", [False, True])
def test_who_drops_out_is_dead_and_the_last_ends_the_episode(cut):
    env = PettingZooEnv(ROUND, num_envs=2, max_steps=None, kwargs={"cut": cut})
    order, ends = [0, 0, 2, 1, 2, 1, 2, 1, 2], {2: 0, 8: 1}  # 0 is gone after two turns, 1 after eight
    for episode in range(2):
        alive = [True] * 3
        for t, actor in enumerate(order):
            if t in ends:
                alive[ends[t]] = False
            masks = env.masks()["agents"]
            assert masks["turn"].tolist() == [[i == actor for i in range(3)]] * 2
            assert masks["alive"].tolist() == [alive] * 2
            turns = order[:t].count(actor)
            assert masks["action"][:, actor].tolist() == [[i <= turns for i in range(3)]] * 2
            moved = env.step(env.random_action())
            following = (actor + 1) % 3
            assert moved.reward["agents"][0, actor] == 1 and moved.reward["agents"][0].sum() == 1 + alive[following] / 2
            over = t == len(order) - 1
            assert moved.terminated.all() == (over and not cut) and moved.truncated.all() == (over and cut), episode
        assert moved.next_observation["agents"][0].tolist() == [[0, 0], [0, 0], [10, 4]]
        assert moved.observation["agents"][0].tolist() == [[1, 0]] * 3


def test_an_agent_that_never_leaves_is_refused():
    env = PettingZooEnv(ROUND, num_envs=1, kwargs={"stubborn": True})
    env.step(env.random_action())
    with pytest.raises(EnvError, match="keeps walker_0 on turn, whose episode has ended: stepped with None"):
        env.step(env.random_action())


def test_a_game_is_continued_from_a_snapshot():
    env, other = nim(stones=9, seed=1), nim(stones=9, seed=2)
    for _ in range(11):
        env.step(env.random_action())
    other.restore(env.snapshot())
    masks = [one.masks()["agents"] for one in (env, other)]
    assert all(torch.equal(masks[0][kind], masks[1][kind]) for kind in ("action", "alive", "turn"))
    for _ in range(5):
        action = env.random_action()
        moves = [one.step(action) for one in (env, other)]
        assert torch.equal(moves[0].observation["agents"], moves[1].observation["agents"])


def test_time_is_up_between_turns():
    env = PettingZooEnv(NIM, num_envs=1, max_steps=3, kwargs={"stones": 10})
    for _ in range(3):
        moved = env.step({"agents": torch.zeros(1, 2, 1, dtype=torch.int64)})
    assert moved.truncated.all() and moved.next_observation["agents"].argmax(-1).tolist() == [[7, 7]]
    assert env.masks()["agents"]["turn"].tolist() == [[True, False]]


def test_functions_called_env_make_games():
    assert PettingZooEnv("tests.envs.turn_cases.env", num_envs=1).spec.groups["agents"].n_agents == 2
    with pytest.raises(EnvError, match=r"env\.env=tests.envs.turn_cases.np.eye: must be"):
        PettingZooEnv("tests.envs.turn_cases.np.eye", num_envs=1)


@pytest.mark.parametrize("game, size, choices", [("tictactoe_v3", 18, 9), ("connect_four_v3", 84, 7)])
def test_pettingzoos_board_games(game, size, choices):
    pytest.importorskip("pettingzoo.classic", reason="PettingZoo's extra is not installed")
    pytest.importorskip("pygame", reason="PettingZoo's board games need pygame")
    env = PettingZooEnv(f"pettingzoo.classic.{game}.env", num_envs=2, max_steps=None)
    group = env.spec.groups["agents"]
    assert (group.observation_size, group.action.nvec) == (size, (choices,))
    generator, ended = torch.Generator().manual_seed(0), 0
    for _ in range(150):
        turn = env.masks()["agents"]["turn"]
        assert (turn.sum(-1) == 1).all()
        moved = env.step(env.random_action(generator))  # a forbidden move would end the game by -1 to 0
        assert (moved.reward["agents"].sum(-1) == 0).all() and not moved.truncated.any()
        won = moved.reward["agents"].abs().sum(-1) > 0
        assert (moved.reward["agents"][turn & won.unsqueeze(-1)] == 1).all()  # who moved last has won
        ended += int(moved.terminated.sum())
        assert torch.equal(env.masks()["agents"]["turn"], torch.where(moved.terminated.unsqueeze(-1), FIRST, ~turn))
    assert ended >= 6


FIRST = torch.tensor([True, False])


def test_pettingzoos_other_games_in_turn():
    pytest.importorskip("mpe2", reason="PettingZoo's extra is not installed")
    env = PettingZooEnv("mpe2.simple_spread_v3.env", num_envs=1, max_steps=None, kwargs={"max_cycles": 4})
    for t in range(24):
        assert env.masks()["agents"]["turn"][0].tolist() == [i == t % 3 for i in range(3)]
        moved = env.step(env.random_action())
        assert (moved.reward["agents"] != 0).all() == (t % 3 == 2)  # the world moves when all have chosen
        assert moved.truncated.all() == (t % 12 == 11)
