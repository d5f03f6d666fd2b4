"""Who won, by hand; and one policy judged in every seat of a game among players of another kind."""

from functools import partial

import numpy as np
import pytest
import torch

from agents.algorithms.ppo import PPO
from agents.evaluation.episodes import Episodes, evaluate, flat, report
from agents.evaluation.game_outcomes import outcomes
from agents.players.seats import Seats
from agents.policies.group_settings import read
from agents.tasks.on_policy import OnPolicy
from envs.adapters.gymnasium_env import PettingZooEnv
from marl.core.errors import UserError
from marl.networks import MLP

NIM = partial(PettingZooEnv, "tests.envs.turn_cases.Nim", num_envs=6, max_steps=20)


def perfect(observation, generator):
    """Leaves a multiple of four stones where it can, else takes one."""
    left = observation.argmax(-1, keepdim=True)
    return (left % 4 - 1).clamp(min=0)


def one(observation, generator):
    """Takes one stone."""
    return torch.zeros(*observation.shape[:2], 1, dtype=torch.int64)


def test_by_hand():
    returns = {"reds": np.array([[1.0, -1.0], [0.0, 0.0], [3.0, 5.0]]), "blue": np.array([[0.0], [0.0], [2.0]])}
    names = {"reds": ("r0", "r1"), "blue": ("b",)}
    shares = outcomes(returns, {}, names)
    assert shares["blue"] == {"won": 0, "drawn": 1 / 3, "lost": 2 / 3, "not_lost": 1 / 3}
    reds = {"won": 2 / 6, "drawn": 2 / 6, "lost": 2 / 6, "not_lost": 4 / 6, "r0/not_lost": 2 / 3, "r1/not_lost": 2 / 3}
    assert shares["reds"] == pytest.approx(reds)
    first = {"reds": np.array([[True, False]] * 3)}
    judged = {"won": 1 / 3, "drawn": 1 / 3, "lost": 1 / 3, "not_lost": 2 / 3, "r0/not_lost": 2 / 3}
    assert outcomes(returns, first, names)["reds"] == pytest.approx(judged)
    assert outcomes({"blue": returns["blue"]}, {}, names) == {}


def test_each_seat_by_turns():
    seats = Seats(perfect, one, 5, 2, torch.device("cpu"))
    assert seats.own.tolist() == [[True, False], [False, True]] * 2 + [[True, False]]
    env = NIM(num_envs=6)
    played = evaluate(env, {"agents": Seats(perfect, one, 6, 2, env.device)}, seed=0)
    # Ten stones: perfect leaves eight, one seven, and so on; as second it finds nine, takes one, and so on.
    assert played.group_returns("agents").tolist() == [1.0] * 6 == played.episode_returns().tolist()
    figures = report(played)["groups"]["agents"]
    assert figures["info"]["won"] == figures["info"]["player_1/not_lost"] == 1
    assert figures["agents"]["player_1"]["episodes"] == 3 and figures["agents"]["player_1"]["mean"] == 1
    worse = evaluate(env, {"agents": Seats(one, perfect, 6, 2, env.device)}, seed=0)
    assert flat(report(worse))["info/lost"] == 1 and worse.episode_returns().mean() == -1
    selfplay = report(evaluate(env, {"agents": perfect}, seed=0))["groups"]["agents"]["info"]
    assert selfplay["won"] == selfplay["lost"] == 0.5 and selfplay["player_0/not_lost"] == 1


def test_one_game_judges_one_seat():
    env = NIM(num_envs=1)
    figures = report(evaluate(env, {"agents": Seats(perfect, one, 1, 2, env.device)}, seed=0))["groups"]["agents"]
    assert list(figures["agents"]) == ["player_0"] and "player_1/not_lost" not in figures["info"]


@pytest.mark.parametrize("num_envs", [1, 3])
def test_seats_go_on_from_reset_to_reset(num_envs):
    """As where resets draw for the whole batch: a few environments play all episodes, and none plays one seat alone."""
    env = NIM(num_envs=num_envs)
    seats = Seats(perfect, one, num_envs, 2, env.device)
    for _ in range(2):  # every evaluation begins with the first seat
        played = evaluate(env, {"agents": seats}, seed=0, episodes=5)
        assert played.judged["agents"].tolist() == [[True, False], [False, True]] * 2 + [[True, False]]
        assert played.episode_returns().tolist() == [1.0] * 5


def test_where_all_act_at_once_nothing_is_won():
    episodes = Episodes({"agents": np.zeros((2, 2))}, np.ones(2, dtype=np.int64), {"agents": ("a", "b")})
    assert report(episodes)["groups"]["agents"]["info"] == {}


def test_a_task_is_judged_against_the_player_that_it_names():
    torch.manual_seed(0)
    algo, network = PPO(rollout_steps=8, minibatch_size=None), partial(MLP, hidden=[8])

    def task(groups, env=NIM):
        return OnPolicy(env, algo, network, frames=48, eval_episodes=400, groups=groups)

    against = task({"agents": {"eval_against": "random"}})
    figures = against.evaluate()
    shares = [figures[f"info/{key}"] for key in ("won", "drawn", "lost")]
    assert sum(shares) == pytest.approx(1) and shares[1] == 0 and 0.2 < shares[0] < 0.8
    assert figures["episode_return"] == pytest.approx(shares[0] - shares[2])
    random = report(against.run_episodes(random=True))["groups"]["agents"]["info"]
    assert 0.4 < random["won"] < 0.6
    both = task({"agents": {"eval_against": f"{__name__}.Perfect"}}).run_episodes(100)
    assert report(both)["groups"]["agents"]["info"]["lost"] > 0.9
    teams = {"first": ["player_0"], "second": ["player_1"]}
    apart = task({"second": {"policy": "random"}}, partial(NIM, groups=teams))
    apart.collect(0)
    assert set(apart.loss.actors) == {"first"}
    assert {"first/info/won", "second/info/not_lost"} <= set(apart.evaluate())


class Perfect:
    def __init__(self, env, group):
        pass

    def __call__(self, observation, generator):
        return perfect(observation, generator)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"agents": {"eval_against": "pool"}}, r"groups\.agents\.eval_against=pool: must be random, still, a saved"),
        (
            {"agents": {"eval_against": "random", "eval_policy": "still"}},
            r"groups\.agents\.eval_against=random: groups\.agents\.eval_policy=still plays all",
        ),
    ],
)
def test_what_means_nothing_is_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        read(settings, NIM().spec)


def test_a_group_of_one_has_no_others():
    spec = NIM(groups={"first": ["player_0"], "second": ["player_1"]}).spec
    with pytest.raises(UserError, match=r"groups\.first\.eval_against=random: the group has one agent; groups\.OTHER"):
        read({"first": {"eval_against": "random"}}, spec)
    with pytest.raises(UserError, match=r"groups\.second\.eval_against: is of groups that learn"):
        read({"second": {"policy": "random", "eval_against": "random"}}, spec)
