"""Masked actions and deaths of gymnasium's and PettingZoo's environments, as the contract tells them."""

import gymnasium
import pytest
import torch

from envs.adapters.gymnasium_env import GymnasiumEnv, PettingZooEnv
from envs.base import EnvError
from tests.envs import host_cases

DOORS = "tests.envs.host_cases.Doors"


def doors(**kwargs):
    return PettingZooEnv(DOORS, num_envs=3, max_steps=None, heterogeneous="pad", kwargs=kwargs)


@pytest.mark.parametrize("masks", ["observation", "info"])
def test_masks_exclude_forbidden_actions_and_mark_the_dead(masks):
    env = doors(masks=masks)
    group = env.spec.groups["agents"]
    assert group.masks == ("action", "alive") and group.observation_size == 2 and group.action.nvec == (4,)
    generator = torch.Generator().manual_seed(0)
    for t in range(1, 400):
        moved = env.step(env.random_action(generator))  # a closed door or a dead agent's action would fail
        time = t % 7  # the last dies after seven steps, and all restart
        alive = torch.tensor([time < 3, time < 5, True]).expand(3, 3)
        group_masks = env.masks()["agents"]
        assert torch.equal(group_masks["alive"], alive) and moved.terminated.all() == (time == 0)
        assert torch.equal(moved.observation["agents"], ((1.0 + time) * alive).unsqueeze(-1).expand(3, 3, 2))
        assert group_masks["action"].any(-1).all() and not group_masks["action"][:, 2, 3].any()  # the last has three
        if time == 0:  # where it really led: only the last was still there
            assert torch.equal(moved.next_observation["agents"][..., 0], torch.tensor([[0.0, 0.0, 8.0]] * 3))
            assert not moved.reward["agents"][:, :2].any()


def test_masks_are_those_of_the_environment():
    env = doors()
    for _ in range(5):
        mask = env.masks()["agents"]["action"]
        for e, copy in enumerate(env.crew.shares[0].copies):
            for i, agent in enumerate(copy.agents):
                if agent in copy.env.agents:
                    assert mask[e, i, : host_cases.CHOICES[i]].tolist() == copy.env.open[agent].tolist()
        env.step(env.random_action())


def test_without_masks_there_are_deaths_alone():
    assert doors(masks="none").spec.groups["agents"].masks == ("alive",)


def test_a_restored_environment_reports_its_masks():
    env, other = doors(), PettingZooEnv(DOORS, num_envs=3, max_steps=None, heterogeneous="pad", seed=5)
    for _ in range(11):
        env.step(env.random_action())
    other.restore(env.snapshot())
    expected, restored = env.masks()["agents"], other.masks()["agents"]
    assert torch.equal(expected["action"], restored["action"]) and torch.equal(expected["alive"], restored["alive"])
    assert not restored["alive"].all()


def test_gymnasiums_infos_mask_too():
    newest = max(name for name in gymnasium.registry if name.startswith("Taxi-v"))
    taxi = GymnasiumEnv(newest, num_envs=2)
    group = taxi.spec.groups["agents"]
    assert group.masks == ("action",) and group.observation_size == 500
    for _ in range(100):
        mask = taxi.masks()["agents"]["action"]
        for e, copy in enumerate(taxi.crew.shares[0].copies):
            raw = copy.env.unwrapped
            assert mask[e, 0].tolist() == raw.action_mask(raw.s).astype(bool).tolist()
        taxi.step(taxi.random_action())
    assert GymnasiumEnv("CartPole-v1", num_envs=1).spec.groups["agents"].masks == ()


def test_a_tuple_of_masks_is_one_per_dimension():
    gymnasium.register("Walker-v0", host_cases.Walker)
    try:
        env = GymnasiumEnv("Walker-v0", num_envs=3, max_steps=20)
        assert env.spec.groups["agents"].masks == ("action",) and env.masks()["agents"]["action"].shape == (3, 1, 5)
        for _ in range(100):
            env.step(env.random_action())
    finally:
        del gymnasium.registry["Walker-v0"]


def test_a_mask_of_another_length_is_refused(monkeypatch):
    monkeypatch.setattr(host_cases.Doors, "action_space", lambda self, agent: gymnasium.spaces.Discrete(5))
    with pytest.raises(EnvError, match=r"action_mask of walker_0 has 4 entries, .* Discrete\(5\) have 5 choices"):
        doors()


def test_a_mask_that_comes_later_than_the_first_reset_is_refused(monkeypatch):
    def show(self, agents):
        observations, infos = shown(self, agents)
        return observations, {agent: {"action_mask": self.open[agent]} for agent in agents} if self.time else infos

    shown = host_cases.Doors._show
    monkeypatch.setattr(host_cases.Doors, "_show", show)
    env = doors(masks="none")
    with pytest.raises(EnvError, match="action_mask came to group 'agents' with a step; the first reset must"):
        env.step(env.random_action())


def test_what_is_no_environment_is_refused():
    with pytest.raises(EnvError, match=r"env\.env=numpy.ndarray: must be a subclass"):
        PettingZooEnv("numpy.ndarray", num_envs=1)
