"""TorchRL takes our environments: specs, rollouts across auto-resets, no reset twice."""

from functools import partial

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from envs.adapters.to_torchrl import TorchRLEnv
from envs.base import EnvError
from envs.vmas.env import VmasEnv as AnyVmasEnv

VmasEnv = partial(AnyVmasEnv, fast="off")  # the eager path; tests/envs/kernel holds the kernels to it

KINDS = {
    "continuous": {},
    "discrete": {"continuous_actions": False},
    "multi_discrete": {"continuous_actions": False, "multi_discrete": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", ["balance", "simple_world_comm"])
def test_check_env_specs(scenario, kind):
    check_env_specs(TorchRLEnv(VmasEnv(scenario, num_envs=5, max_steps=2, global_state=True, **KINDS[kind])))


@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_are_those_of_the_environment(kind):
    make = {"scenario": "dropout", "num_envs": 6, "max_steps": 4, "global_state": True, **KINDS[kind]}
    env, direct = TorchRLEnv(VmasEnv(**make)), VmasEnv(**make)
    env.set_seed(3)
    direct.reset(3)
    first = direct.reset()
    data = env.rollout(11, break_when_any_done=False)
    assert torch.equal(data["agents", "observation"][:, 0], first[0]["agents"])
    for t in range(11):
        action = data["agents", "action"][:, t]
        moved = direct.step({"agents": action.unsqueeze(-1) if kind == "discrete" else action})
        step = data["next"][:, t]
        assert torch.equal(step["agents", "observation"], moved.next_observation["agents"])
        assert torch.equal(step["agents", "reward"][..., 0], moved.reward["agents"])
        assert torch.equal(step["state"], moved.next_state)
        for key in ("done", "terminated", "truncated"):
            assert torch.equal(step[key][:, 0], getattr(moved, key))
        if t < 10:
            assert torch.equal(data["agents", "observation"][:, t + 1], moved.observation["agents"])
            assert torch.equal(data["state"][:, t + 1], moved.state)
    assert data["next", "truncated"].sum() >= 10


def test_resetting_what_has_not_ended_is_refused():
    env = TorchRLEnv(VmasEnv("balance", num_envs=4, max_steps=5))
    data = env.rollout(2)
    data = data[:, -1].clone()
    data["_reset"] = torch.tensor([[True], [False], [False], [False]])
    with pytest.raises(EnvError, match="just ended"):
        env.reset(data)


def test_a_whole_reset_in_the_middle_starts_all_again():
    env = TorchRLEnv(VmasEnv("balance", num_envs=4, max_steps=5))
    env.rollout(3)
    env.reset()
    assert (env.env.simulator.steps == 0).all()
    assert not env.rollout(5)["next", "done"][:, :4].any()
