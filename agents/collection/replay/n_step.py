"""Sums of the rewards of up to n steps, before what follows is valued (Watkins 1989).

Shapes: B steps, E environments, A agents in a group.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor


class Steps(Protocol):
    """What is asked of a buffer; `agents.collection.replay.buffer.ReplayBuffer` explains each."""

    sources: Iterable[str]
    added: int
    capacity: int
    n_envs: int

    def at(self, name: str, at: Tensor) -> Tensor:
        """Rows [B, ...]."""


def n_step_sums(
    buffer: Steps, step: Tensor, env: Tensor, at: Tensor, n_step: int, gamma: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """An episode's end, or the newest step, ends a sum earlier.

    Args:
        buffer: what holds the steps.
        step: int64 [B], counted from the first ever added.
        env: int64 [B].
        at: int64 [B], where they lie: slot * E + environment.
        n_step: most rewards that are summed.
        gamma: float32 [B], the discount per step.

    Returns:
        {"GROUP/reward": float32 [B, A], discounted sums}; int64 [B], where the last step that is summed lies; float32
        [B], gamma ** the steps summed.
    """
    last, discount = at, gamma
    rewards = {name: buffer.at(name, at) for name in buffer.sources if name.endswith("/reward")}
    going = ~buffer.at("done", at)
    for k in range(1, n_step):
        going = going & (step + k < buffer.added)
        following = ((step + k) % buffer.capacity) * buffer.n_envs + env
        for name, total in rewards.items():
            gain = buffer.at(name, following)
            rewards[name] = total + torch.where(going.unsqueeze(-1), discount.unsqueeze(-1) * gain, 0.0)
        last = torch.where(going, following, last)
        discount = torch.where(going, discount * gamma, discount)
        going = going & ~buffer.at("done", last)
    return rewards, last, discount
