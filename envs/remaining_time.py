"""The share of an episode that remains, as one more number of what agents and critics see (Pardo et al. 2018).

Shapes: E environments, A agents, F features, S global state features.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from envs.base import EnvError
from envs.observation_parts import WHOLE
from envs.spec import GroupSpec, ObservationPart

NAME = "remaining_time"  # of the part that it is


class RemainingTime:
    """What an environment's setting `observe_time` asks for; with False everything stays as it is.

    The number is 1 - t / max_steps after t steps of the episode: 1 at its start, 0 in the true final observation of one
    that the time limit ended. It comes last.

    Args:
        observed: the setting.
        max_steps: the time limit, steps; None: there is none.

    Raises:
        EnvError: it is asked for where there is no time limit.
    """

    def __init__(self, observed: bool, max_steps: int | None) -> None:
        if observed and max_steps is None:
            raise EnvError(
                "env.observe_time=true: without a time limit no share of the episode remains; set "
                "env.max_steps, or env.observe_time=false."
            )
        self.max_steps = max_steps if observed else None

    @property
    def observed(self) -> bool:
        """Whether it is asked for."""
        return self.max_steps is not None

    def spec(self, group: GroupSpec) -> GroupSpec:
        """A group's spec with the number among its features, as a part of its own name."""
        if not self.observed:
            return group
        before = group.parts or (ObservationPart(WHOLE, (group.observation_size,)),)
        parts = (*before, ObservationPart(NAME, (1,)))
        return replace(group, observation_size=group.observation_size + 1, parts=parts)

    def append(self, seen: Tensor, steps: Tensor, there: Tensor | None = None) -> Tensor:
        """What is seen with the number as its last feature.

        Args:
            seen: float32 [E, A, F], or a global state [E, S].
            steps: of the running episodes, any dtype, [E].
            there: bool [E, A]: an agent that is not there sees zeros; None: all are.

        Returns:
            float32 [E, A, F + 1] or [E, S + 1].
        """
        if self.max_steps is None:
            return seen
        share = 1 - steps.to(torch.float32) / self.max_steps
        share = share.view(-1, *[1] * (seen.dim() - 1)).expand(*seen.shape[:-1], 1)
        if there is not None:
            share = share * there.unsqueeze(-1)
        return torch.cat([seen, share], -1)


def without_time(group: GroupSpec, observation: Tensor) -> Tensor:
    """A group's observation [E, A, F] as it would be without `observe_time`, for players that know its places."""
    observed = any(part.name == NAME for part in group.parts[-1:])
    return observation[..., :-1] if observed else observation
