"""Statistics of the episodes that end while a run collects.

Shapes: T time, E environments, A agents in a group.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from agents.collection.rollout_buffer import RolloutBuffer
from marl.core import distributed


class EpisodeReturns:
    """Returns and lengths of the episodes that end within a rollout, carried over from one rollout to the next.

    Vectorised over the rollout: a running sum less its value at the previous end, no work inside the hot loop.
    """

    def __init__(self, n_envs: int, n_agents: int, device: torch.device):
        self.carry = torch.zeros(n_envs, n_agents, device=device)

    def load(self, carry: Tensor) -> None:
        """Go on from the `carry` of another, float32 [E, A]."""
        self.carry = carry

    @torch.no_grad()
    def add(self, reward: Tensor, done: Tensor) -> Tensor:
        """Undiscounted return of the episode up to and including each step.

        Args:
            reward: float32 [T, E, A].
            done: bool [T, E].

        Returns:
            float32 [T, E, A]: at steps where `done`, the whole episode's return.
        """
        T = len(reward)
        total = reward.cumsum(0) + self.carry
        time = torch.arange(T, device=reward.device).unsqueeze(-1)
        ended = torch.where(done, time, -1).cummax(0).values  # [T, E]: latest end up to and including t

        def before(last: Tensor) -> Tensor:
            """The running sum at step `last` [..., E] (0 where there is none)."""
            index = last.clamp(min=0).unsqueeze(-1).expand(*last.shape, reward.shape[-1])
            return total.gather(0, index).mul_((last >= 0).unsqueeze(-1))

        previous = torch.cat([torch.full_like(ended[:1], -1), ended[:-1]])
        self.carry = (total[-1:] - before(ended[-1:]))[0]
        return total - before(previous)


class EpisodeStatistics:
    """Returns and lengths of the episodes that end in a run's rollouts, as figures of an iteration.

    Args:
        n_envs: environments.
        n_agents: {group: its number of agents}, of all groups.
        learning: the groups whose return is the run's.
        device: where rollouts live.
    """

    def __init__(self, n_envs: int, n_agents: Mapping[str, int], learning: Collection[str], device: torch.device):
        self.learning = learning
        self.returns = {name: EpisodeReturns(n_envs, count, device) for name, count in n_agents.items()}
        self.lengths = EpisodeReturns(n_envs, 1, device)

    def figures(self, rollout: RolloutBuffer) -> dict[str, Tensor]:
        """Means over the episodes that ended in this rollout, of all processes (NaN where none did)."""
        done = rollout.done
        ended = distributed.total(done.sum())
        figures, means = {}, []
        for name, returns in self.returns.items():
            totals = returns.add(rollout.reward[name], done).mean(-1)
            mean = distributed.total((totals * done).sum()) / ended
            means += [mean] * (name in self.learning)
            if len(self.returns) > 1:
                figures[f"{name}/episode_return"] = mean
        lived = (~rollout.idle(slice(0, -1))).float().unsqueeze(-1)
        lengths = self.lengths.add(lived, done).squeeze(-1)
        figures["episode_return"] = torch.stack(means).mean()
        figures["episode_length"] = distributed.total((lengths * done).sum()) / ended
        figures["episodes"] = ended
        return figures

    def state_dict(self) -> dict:
        """Returns and lengths so far of the episodes that are still running."""
        return {
            "returns": {name: returns.carry for name, returns in self.returns.items()},
            "lengths": self.lengths.carry,
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Continue from `state_dict`, bitwise identically; further keys are not read."""
        for name, carry in state["returns"].items():
            self.returns[name].load(carry)
        self.lengths.load(state["lengths"])
