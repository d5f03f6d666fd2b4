"""What we hand out passes its owners' checks, and steps as the environment behind it."""

import warnings

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.adapters.to_gymnasium import GymnasiumSingle, GymnasiumVector, pettingzoo_parallel
from envs.base import EnvError
from envs.vmas.env import VmasEnv

CASES = [("balance", {}), ("simple_tag", {}), ("simple_crypto", {"continuous_actions": False, "multi_discrete": True})]


def make(scenario, num_envs, **settings):
    return VmasEnv(scenario, num_envs=num_envs, max_steps=5, fast="off", seed=1, **settings)


@pytest.mark.parametrize(("scenario", "settings"), CASES)
def test_gymnasiums_checker_passes(scenario, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises on styles of spaces
        check_env(GymnasiumSingle(make(scenario, 1, **settings)), skip_render_check=True)


@pytest.mark.parametrize(("scenario", "settings"), CASES)
def test_the_vector_environment_is_the_environment(scenario, settings):
    vector, direct = GymnasiumVector(make(scenario, 4, **settings)), make(scenario, 4, **settings)
    vector.action_space.seed(0)
    observation, _ = vector.reset(seed=3)
    expected = direct.reset(3)[0]
    assert observation in vector.observation_space
    ended = 0
    for _ in range(7):
        assert all(np.array_equal(observation[name], value.numpy()) for name, value in expected.items())
        action = vector.action_space.sample()
        observation, reward, terminated, truncated, infos = vector.step(action)
        moved = direct.step({name: torch.as_tensor(value) for name, value in action.items()})
        expected = moved.observation
        assert observation in vector.observation_space
        np.testing.assert_allclose(reward, torch.cat([*moved.reward.values()], 1).mean(1).numpy(), rtol=1e-6)
        assert np.array_equal(terminated | truncated, moved.done.numpy())
        if moved.done.any():
            ended += 1
            final = infos["final_obs"]
            assert np.array_equal(infos["_final_obs"], moved.done.numpy())
            assert all(np.array_equal(final[name], value.numpy()) for name, value in moved.next_observation.items())
    assert ended


@pytest.mark.parametrize(("scenario", "settings"), CASES)
def test_pettingzoos_check_passes(scenario, settings):
    test = pytest.importorskip("pettingzoo.test", reason="PettingZoo's extra is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        test.parallel_api_test(pettingzoo_parallel(make(scenario, 1, **settings)), num_cycles=20)


def test_pettingzoo_steps_as_the_environment():
    pytest.importorskip("pettingzoo", reason="PettingZoo's extra is not installed")
    parallel, direct = pettingzoo_parallel(make("balance", 1)), make("balance", 1)
    observations, _ = parallel.reset(seed=3)
    start = direct.reset(3)[0]["agents"]
    assert np.array_equal(np.stack(list(observations.values())), start[0].numpy())
    rng = np.random.default_rng(0)
    for step in range(5):
        actions = {agent: rng.uniform(-1, 1, 2).astype(np.float32) for agent in parallel.agents}
        observations, rewards, ended, cut, _ = parallel.step(actions)
        moved = direct.step({"agents": torch.as_tensor(np.stack(list(actions.values())))[None]})
        assert np.array_equal(np.stack(list(observations.values())), moved.next_observation["agents"][0].numpy())
        assert list(rewards.values()) == pytest.approx(moved.reward["agents"][0].tolist())
        assert all(cut.values()) == (step == 4) and not any(ended.values())
    assert parallel.agents == []
    again, _ = parallel.reset()
    assert np.array_equal(np.stack(list(again.values())), moved.observation["agents"][0].numpy())


def test_only_a_single_environment_is_handed_out():
    with pytest.raises(EnvError, match=r"num_envs=2.*num_envs=1"):
        GymnasiumSingle(make("balance", 2))
