"""Evaluation where environments share what a reset draws: several resets, joined, and intervals of resets."""

from functools import partial

import numpy as np
import pytest
import torch

from agents.evaluation.episodes import RESETS, Episodes, env_for, evaluate, joined, report, statistics
from envs import VmasEnv
from marl.core.seeding import derive


def made(scenario: str) -> partial[VmasEnv]:
    return partial(VmasEnv, scenario, max_steps=3, fast="off", seed=0)


def still(observation: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.zeros(*observation.shape[:2], 2)


@pytest.fixture(scope="module")
def push() -> tuple[VmasEnv, dict]:
    env = env_for(made("mpe/simple_push"), 25)
    return env, dict.fromkeys(env.spec.groups, still)


def test_environments_that_share_nothing_are_all_played_at_once() -> None:
    assert env_for(made("dispersion"), 25).num_envs == 25
    env = env_for(made("mpe/simple_push"), 1)
    assert env.shared_draws and env.num_envs == 1


def test_what_is_shared_is_drawn_again_for_each_part_of_the_episodes(push) -> None:
    env, players = push
    assert env.num_envs == 3  # 25 episodes in ten resets, of which nine are needed
    played = evaluate(env, players, 7, episodes=25)
    assert played.resets.tolist() == [i // 3 for i in range(25)] and played.lengths.tolist() == [3] * 25
    for reset in (0, 1, 8):  # each is what a reset of its own gives
        seed = derive(7, f"reset {reset}") if reset else 7
        alone = evaluate(env, players, seed)
        assert alone.resets is None
        for name, returns in alone.returns.items():
            own = played.returns[name][played.resets == reset]
            assert (own == returns[: len(own)]).all()
    again = evaluate(env, players, 7, episodes=25)
    assert all((again.returns[name] == played.returns[name]).all() for name in played.returns)


def test_several_goals_are_met(push) -> None:
    env, players = push
    goals = set()
    for i in range(RESETS):
        env.reset(derive(7, f"reset {i}"))
        goals.add(env.world.simulator.world.agents[1].goal.name)
    assert len(goals) > 1


def test_the_interval_is_of_resets() -> None:
    """Two resets of two episodes, 1 and 3 on average: mean 2, sums of deviations -2 and 2, so sqrt(2 * 8) / 4 = 1."""
    values, resets = np.array([0.0, 2.0, 3.0, 3.0]), np.array([0, 0, 1, 1])
    row = statistics(values, resets)
    t = 12.7062047  # of one degree of freedom
    assert row["mean"] == 2 and row["ci95"] == pytest.approx([2 - t, 2 + t]) and row["episodes"] == 4
    assert row["std"] == pytest.approx(np.sqrt(2)) == statistics(values)["std"]
    one = statistics(values, np.zeros(4, int))
    assert one == statistics(values)  # a single reset says nothing of others: as if episodes were independent


def test_resets_of_one_episode_each_are_independent_episodes() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert statistics(values, np.arange(50))["ci95"] == pytest.approx(statistics(values)["ci95"])


def test_a_figure_that_only_some_resets_have_is_nan_in_the_others() -> None:
    def part(value: float, info: dict) -> Episodes:
        return Episodes({"a": np.full((2, 1), value)}, np.array([3, 4]), {"a": ("x",)}, info)

    whole = joined([part(1.0, {}), part(5.0, {"a": {"hit/mean": np.ones((2, 1))}})], 3)
    assert whole.returns["a"].flatten().tolist() == [1, 1, 5] and whole.lengths.tolist() == [3, 4, 3]
    assert np.isnan(whole.info["a"]["hit/mean"][:2]).all() and whole.info["a"]["hit/mean"][2] == 1
    block = report(whole)
    assert block["groups"]["a"]["info"] == {"hit/mean": 1.0} and block["episode_return"]["mean"] == pytest.approx(7 / 3)
    assert block["groups"]["a"]["agents"]["x"]["ci95"] == block["episode_return"]["ci95"]
