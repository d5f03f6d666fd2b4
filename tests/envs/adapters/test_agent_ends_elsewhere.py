"""Agents that end each on its own, in the forms that other packages know: read from TorchRL, and handed out."""

import warnings

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torchrl.envs.utils import check_env_specs

from envs.adapters.to_gymnasium import GymnasiumSingle, GymnasiumVector, pettingzoo_parallel
from envs.adapters.to_torchrl import TorchRLEnv
from envs.adapters.torchrl_env import FromTorchRL
from envs.vmas.env import VmasEnv
from tests.envs.torchrl_cases import arrivals

G = "agents"
VISIT = {"continuous_actions": False}


def make(name, num_envs, max_steps=9):
    settings = {} if name == "Arrive" else VISIT
    path = f"tests.envs.vmas.ends_cases.{name}"
    return VmasEnv(path, num_envs=num_envs, max_steps=max_steps, fast="off", seed=1, **settings)


def test_flags_of_torchrls_agents():
    """Against the table of `Leavers`, whose agents are over after 2 (terminated), 3 (cut off) and 5 steps."""
    env = FromTorchRL("tests.envs.torchrl_cases.Leavers", num_envs=2, max_steps=None)
    group = env.spec.groups[G]
    assert group.ends and group.masks == ("alive",)
    for t in range(1, 14):
        k = (t - 1) % 5 + 1  # the episode's step
        alive = torch.tensor([k <= 2, k <= 3, True]).expand(2, 3)
        assert torch.equal(env.masks()[G]["alive"], alive)
        moved = env.step(env.random_action())
        assert torch.equal(moved.reward[G], alive.float())
        assert torch.equal(moved.next_observation[G][..., 0], (k + 1.0) * alive)
        assert torch.equal(moved.agent_terminated[G], torch.tensor([k == 2, False, k == 5]).expand(2, 3))
        assert torch.equal(moved.agent_truncated[G], torch.tensor([False, k == 3, False]).expand(2, 3))
        assert moved.terminated.tolist() == [k == 5] * 2 and not moved.truncated.any()
        after = torch.tensor([k < 2, k < 3, True]).expand(2, 3) if k < 5 else torch.ones(2, 3)
        assert torch.equal(moved.observation[G][..., 0], (k % 5 + 1.0) * after)


@pytest.mark.parametrize(("settings", "at"), [({"max_steps": 4}, 4), ({"max_steps": None, "restart_every": 4}, 4)])
def test_limits_cut_off_who_is_left(settings, at):
    env = FromTorchRL("tests.envs.torchrl_cases.Leavers", num_envs=2, **settings)
    moved = [env.step(env.random_action()) for _ in range(at)][-1]
    assert moved.truncated.all() and moved.agent_truncated[G].tolist() == [[False, False, True]] * 2
    assert not moved.agent_terminated[G].any() and env.masks()[G]["alive"].all()


def test_there_and_back_again():
    env = FromTorchRL("tests.envs.torchrl_cases.arrivals", num_envs=4, max_steps=None, vectorised="num_envs")
    assert env.spec.groups[G].ends
    direct = arrivals(4).env
    env.reset(3)
    direct.restore(env.env.env.snapshot())
    alone = 0
    for _ in range(20):
        assert torch.equal(env.masks()[G]["alive"], direct.masks()[G]["alive"])
        action = env.random_action()
        ours, theirs = env.step(action), direct.step(action)
        for kind in ("observation", "next_observation", "reward", "agent_terminated", "agent_truncated"):
            assert torch.equal(getattr(ours, kind)[G], getattr(theirs, kind)[G]), kind
        assert torch.equal(ours.done, theirs.done)
        alone += int((ours.agent_terminated[G].any(-1) & ~ours.done).sum())
    assert alone > 3


@pytest.mark.parametrize("name", ["Arrive", "Visit"])
def test_torchrl_takes_ends_and_masks(name):
    check_env_specs(TorchRLEnv(make(name, 3, max_steps=3)))
    env, direct = TorchRLEnv(make(name, 4)), make(name, 4)
    env.set_seed(3)
    direct.reset(3)
    direct.reset()
    data = env.rollout(15, break_when_any_done=False)
    for t in range(15):
        alive = direct.masks()[G]["alive"]
        assert torch.equal(data[G, "alive"][:, t], alive)
        action = data[G, "action"][:, t]
        moved = direct.step({G: action if name == "Arrive" else action.unsqueeze(-1)})
        step = data["next"][:, t]
        assert torch.equal(step[G, "terminated"][..., 0], moved.agent_terminated[G])
        assert torch.equal(step[G, "truncated"][..., 0], moved.agent_truncated[G])
        assert torch.equal(step["done"][..., 0], moved.done)
    assert data["next", G, "terminated"].any()
    assert name == "Arrive" or data[G, "action_mask"].shape == (4, 15, 3, 9)


def test_gymnasium_is_told_in_the_infos():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(GymnasiumSingle(make("Visit", 1)), skip_render_check=True)
    vector, direct = GymnasiumVector(make("Visit", 4)), make("Visit", 4)
    _, infos = vector.reset(seed=3)
    direct.reset(3)
    vector.action_space.seed(0)
    for _ in range(12):
        masks = direct.masks()[G]
        assert np.array_equal(infos[f"alive/{G}"], masks["alive"].numpy())
        assert np.array_equal(infos[f"action_mask/{G}"], masks["action"].numpy())
        action = vector.action_space.sample()
        *_, infos = vector.step(action)
        moved = direct.step({G: torch.as_tensor(action[G])})
        assert np.array_equal(infos[f"terminated/{G}"], moved.agent_terminated[G].numpy())
        assert np.array_equal(infos[f"truncated/{G}"], moved.agent_truncated[G].numpy())
        assert np.array_equal(infos[f"led_to/{G}"], moved.next_observation[G].numpy())


def test_pettingzoos_agents_leave_with_their_own_flags():
    test = pytest.importorskip("pettingzoo.test", reason="PettingZoo's extra is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        test.parallel_api_test(pettingzoo_parallel(make("Arrive", 1)), num_cycles=40)
    parallel, direct = pettingzoo_parallel(make("Visit", 1, max_steps=20)), make("Visit", 1, max_steps=20)
    _, infos = parallel.reset(seed=4)
    direct.reset(4)
    names, left, back = direct.spec.groups[G].agents, 0, 0
    rng, played = np.random.default_rng(0), []  # they stand still at first, so that they come back
    for _ in range(20):  # at times nobody is there, though the episode goes on
        masks = direct.masks()[G]
        assert parallel.agents == [a for a, alive in zip(names, masks["alive"][0], strict=True) if alive]
        actions = {}
        for agent in parallel.agents:
            mask = infos[agent]["action_mask"]
            assert np.array_equal(mask.astype(bool), masks["action"][0, names.index(agent)].numpy())
            actions[agent] = rng.choice(np.flatnonzero(mask)) if len(played) > 14 else 0
        before = list(parallel.agents)
        played.append(before)
        observations, rewards, ended, cut, infos = parallel.step(actions)
        rows = torch.tensor([[[int(actions.get(agent, 0))] for agent in names]])
        moved = direct.step({G: rows})
        for i, agent in enumerate(names):
            if agent in before:
                assert ended[agent] == bool(moved.agent_terminated[G][0, i])
                assert cut[agent] == bool(moved.agent_truncated[G][0, i])
                assert rewards[agent] == float(moved.reward[G][0, i])
                assert np.array_equal(observations[agent], moved.next_observation[G][0, i].numpy())
        left += any(ended[agent] for agent in before)
        back += any(agent not in before for agent in parallel.agents)
    assert left and back and not parallel.agents
