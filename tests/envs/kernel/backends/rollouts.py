"""Steps and buffers for comparing one environment with another."""

import torch
from torch import Tensor

from envs.vmas.env import VmasEnv


def played(env: VmasEnv, steps: int) -> list[dict[str, Tensor]]:
    """What a reset and the steps after it give, under actions that depend on nothing but the step's number."""
    out = [dict(env.reset(seed=11)[0])]
    for t in range(steps):
        step = env.step(env.random_action(torch.Generator().manual_seed(t)))
        out.append({"terminated": step.terminated, "truncated": step.truncated})
        for name in env.spec.groups:
            out[-1] |= {
                f"observation {name}": step.observation[name],
                f"reward {name}": step.reward[name],
                f"next {name}": step.next_observation[name],
            }
    return out


def bound(env: VmasEnv, steps: int) -> dict[str, Tensor]:
    """The buffers of a rollout, bound to an environment with one group, "agents"."""
    group, shape = env.spec.groups["agents"], (steps, env.num_envs)
    buffers = {
        "observation": torch.zeros(*shape, group.n_agents, group.observation_size),
        "next": torch.zeros(*shape, group.n_agents, group.observation_size),
        "reward": torch.zeros(*shape, group.n_agents),
        "terminated": torch.zeros(shape, dtype=torch.bool),
        "truncated": torch.zeros(shape, dtype=torch.bool),
    }
    env.bind_rollout(
        {"agents": buffers["observation"]},
        {"agents": buffers["next"]},
        {"agents": buffers["reward"]},
        buffers["terminated"],
        buffers["truncated"],
    )
    return buffers
