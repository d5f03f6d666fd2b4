"""Exported files against the policy they were made of: the largest error along recorded episodes.

Every file carries its own memory along an episode, so that what it forgets or rounds may add up.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agents.deploy.formats.recorded import feed, moments
from agents.evaluation.dataset_recording import record
from agents.evaluation.episode_loop import Players
from agents.evaluation.own_env import own_env
from agents.policies.policy import Policy
from marl.core.errors import UserError


@dataclass
class Errors:
    """How far a file's actions are from `Policy.act`'s.

    observations: how many were compared (a team's observation at one step is one).
    largest, mean: of continuous numbers, as shares of their range (of an unbounded one: in its units).
    differing, choices: how many of all discrete choices are others.
    """

    observations: int = 0
    largest: float = 0.0
    total: float = 0.0
    numbers: int = 0
    differing: int = 0
    choices: int = 0

    @property
    def mean(self) -> float:
        return self.total / max(self.numbers, 1)


def recorded(policy: Policy, observations: int, seed: int) -> dict[str, Tensor]:
    """Episodes of the policy's mode in the environment it was trained in: a shard of at least so many observations.

    Raises:
        UserError: the policy does not say how its environment is built, or the environment has no time limit.
    """
    if policy.spec.max_steps is None:
        raise UserError("the policy's environment has no time limit, which recorded episodes need")
    parts, left = [], observations
    while left > 0:  # episodes may end early
        count = -(-left // policy.spec.max_steps)
        env = own_env(policy, count, seed + len(parts))
        parts.append(record(env, Players(policy.actors, deterministic=True), seed + len(parts)))
        left -= int(parts[-1]["length"].sum())
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def errors(
    policy: Policy, file: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]], shard: Mapping[str, Tensor]
) -> Errors:
    """Act on all observations of a shard with `Policy.act` and with a file (inputs by name -> outputs by name)."""
    found, episodes = Errors(), len(shard["length"])
    memory, of_file = policy.memory(episodes), policy.memory(episodes)
    for now in moments(policy, shard):
        ours = {name: value[now.rows] for name, value in memory.items()}
        actions, after = policy.act(now.observation, masks=now.masks, memory=ours)
        outputs = file(feed(policy, now, of_file))
        found.observations += len(now.rows)
        for name, group in policy.spec.groups.items():
            theirs = torch.from_numpy(np.array(outputs[f"{name}_action"]))
            _count(found, actions[name], theirs, group.action)
        for name, value in after.items():
            memory[name][now.rows] = value
            new = torch.from_numpy(np.array(outputs[f"{name}_next_memory"]))
            alive = now.masks.get(name, {}).get("alive")
            of_file[name][now.rows] = new if alive is None else new * alive.unsqueeze(-1)
    return found


def _count(found: Errors, ours: Tensor, theirs: Tensor, action) -> None:
    """Take one group's actions [B, A, D] into the sums."""
    C = action.n_continuous
    if C:
        width = action.high - action.low
        width = torch.where(width.isfinite() & (width > 0), width, 1.0)
        off = ((ours[..., :C] - theirs[..., :C]) / width).abs().double()
        found.largest = max(found.largest, float(off.max()))
        found.total += float(off.sum())
        found.numbers += off.numel()
    found.differing += int((ours[..., C:] != theirs[..., C:]).sum())
    found.choices += ours[..., C:].numel()
