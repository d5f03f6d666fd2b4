"""Infos of gymnasium's and PettingZoo's environments: of the step that was made, and never of a reset."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from envs.adapters.copies.host_infos import numbers, of_last_steps
from envs.adapters.gymnasium_env import GymnasiumEnv, PettingZooEnv
from envs.adapters.torchrl_env import FromTorchRL
from envs.adapters.vector_env import VectorEnv
from envs.infos import InfoRules, agents_mean

EVERYTHING = InfoRules.of({"*": ["end"]})
GOAL = "tests.envs.info_cases:InfoGoal-v0"
MODES = ("NextStep", "SameStep", "Disabled")


def test_numbers_are_kept_and_all_else_is_not():
    told = numbers(
        {"a": 1, "b": True, "c": {"d": np.float64(2), "e": {"f": np.array([1, 2])}}, "text": "x", "none": None,
         "list": [1], "action_mask": np.ones(2), "large": np.zeros(65), "empty": np.zeros(0), "object": object(),
         "complex": 1j, 5: np.array(3)}, EVERYTHING,
    )  # fmt: skip
    assert {name: value.tolist() for name, value in told.items()} == {"a": 1, "b": 1, "c.d": 2, "c.e.f": [1, 2], "5": 3}
    assert all(value.dtype == np.float32 for value in told.values())
    assert set(numbers({"a": 1, "c": {"d": 2}}, InfoRules.of({"c*": ["end"]}))) == {"c.d"}


def steps(env, count):
    """{name: [count, E]} of the group's one agent, and the observation's height [count, E] with done [count, E]."""
    env.reset(3)
    rows, height, done = [], [], []
    for _ in range(count):
        moved = env.step({"agents": torch.ones(env.num_envs, 1, 1, dtype=torch.int64)})
        rows.append(moved.info["agents"])
        height.append(moved.next_observation["agents"][:, 0, 1])
        done.append(moved.done)
    none = torch.full((env.num_envs, 1), torch.nan)
    names = {name for row in rows for name in row}
    told = {name: torch.stack([agents_mean(row.get(name, none), 2) for row in rows])[:, :, 0] for name in names}
    return told, torch.stack(height), torch.stack(done)


def check(told, height, done):
    assert set(told) == {"height", "of.steps", "pair", "success"}
    assert torch.equal(told["success"].isnan(), ~done) and (told["success"][done] == 1).all() and done.sum() > 8
    lived = ~told["height"].isnan()
    assert torch.equal(told["height"][lived], height[lived])
    time = torch.zeros(done.shape[1])
    for t in range(len(done)):
        time = time + lived[t]
        assert torch.equal(told["of.steps"][t][lived[t]], time[lived[t]])
        time = time * ~done[t]
    return lived


def test_gymnasiums_infos_are_of_the_step_that_ended():
    told, height, done = steps(GymnasiumEnv(GOAL, 3, seed=1), 20)
    assert check(told, height, done).all()
    assert_close(told["pair"], told["of.steps"] / 2 + 1)


@pytest.mark.parametrize("mode", MODES)
def test_vectorised_ones_tell_the_same_in_every_way_to_reset(mode):
    told, height, done = steps(VectorEnv(GOAL, 3, 50, seed=1, kwargs={"mode": mode}), 24)
    lived = check(told, height, done)
    waits = torch.cat([torch.zeros_like(done[:1]), done[:-1]]) & (mode == "NextStep")
    assert torch.equal(lived, ~waits)


def test_final_infos_of_old_are_read_too():
    final = np.array([None, {"success": True, "text": "x"}], dtype=object)
    told = of_last_steps(final, EVERYTHING, np.array([False, True]))
    assert list(told) == ["success"] and np.isnan(told["success"][0]) and told["success"][1] == 1
    assert of_last_steps(None, EVERYTHING, np.array([False, True])) == {}


def test_only_what_is_wanted_is_told():
    for env in (GymnasiumEnv(GOAL, 2), VectorEnv(GOAL, 2, 50)):
        action = {"agents": torch.ones(2, 1, 1, dtype=torch.int64)}
        env.keep_infos(InfoRules.of({"h*": ["mean"]}))
        assert set(env.step(action).info["agents"]) == {"height"}
        env.keep_infos(InfoRules.of(None))
        assert env.step(action).info["agents"] == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_pettingzoos_infos_by_agent(workers):
    env = PettingZooEnv("tests.envs.info_cases.Walkers", num_envs=3, workers=workers, max_steps=10)
    env.reset(0)
    paces, onlys = [], []
    for _ in range(4):
        moved = env.step({"agents": torch.ones(3, 2, 1, dtype=torch.int64)})
        paces.append(moved.info["agents"]["pace"])
        onlys.append(moved.info["agents"]["only"])
    env.close()
    nan = torch.nan
    expected = torch.tensor([[21.0, 41], [22, 42], [nan, 43], [nan, 44]]).unsqueeze(1).expand(4, 3, 2)
    assert_close(torch.stack(paces), expected, equal_nan=True)
    expected = torch.tensor([[nan, 1.0], [nan, 2], [nan, 3], [nan, 4]]).unsqueeze(1).expand(4, 3, 2)
    assert_close(torch.stack(onlys), expected, equal_nan=True)
    assert moved.done.all()


def test_worker_processes_tell_what_this_one_does():
    here, there = (GymnasiumEnv(GOAL, 3, seed=2, workers=n) for n in (0, 2))
    try:
        for ours, theirs in zip(steps(here, 12)[0].items(), steps(there, 12)[0].items(), strict=True):
            assert ours[0] == theirs[0]
            assert_close(ours[1], theirs[1], rtol=0, atol=0, equal_nan=True)
        there.keep_infos(InfoRules.of({"success": ["end"]}))
        assert set(steps(there, 12)[0]) == {"success"}
    finally:
        there.close()


def test_torchrls_infos_lie_in_the_group():
    env = FromTorchRL("torchrl.envs.VmasEnv", 3, 10, "num_envs", kwargs={"scenario": "balance", "n_agents": 2})
    moved = env.step(env.random_action(torch.Generator().manual_seed(0)))
    assert {name: value.shape for name, value in moved.info["agents"].items()} == {
        "pos_rew": (3, 2), "ground_rew": (3, 2)}  # fmt: skip
    total = moved.info["agents"]["pos_rew"] + moved.info["agents"]["ground_rew"]
    assert_close(total, moved.reward["agents"])
