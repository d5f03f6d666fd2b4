"""Statistics of the episodes that end while a run collects: returns, lengths and the environment's own figures.

Shapes: T time, E environments, A agents in a group.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from agents.collection.ends import Ends
from agents.collection.episode_infos import EpisodeInfos, ended_means, figure
from agents.collection.rollout_buffer import RolloutBuffer
from envs.infos import InfoRules
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
    def add(self, reward: Tensor, done: Tensor | Ends) -> Tensor:
        """Undiscounted return of the episode up to and including each step.

        Args:
            reward: float32 [T, E, A].
            done: bool [T, E], or the ends that were found in it.

        Returns:
            float32 [T, E, A]: at steps where `done`, the whole episode's return.
        """
        ends = done if isinstance(done, Ends) else Ends(done)
        totals, self.carry = ends.totals(reward, self.carry)
        return totals


class EpisodeStatistics:
    """Returns and lengths of the episodes that end in a run's rollouts, as figures of an iteration.

    Args:
        n_envs: environments.
        n_agents: {group: its number of agents}, of all groups.
        learning: the groups whose return is the run's.
        device: where rollouts live.
        info: how the environment's own figures are reduced; by default none is.
    """

    def __init__(
        self,
        n_envs: int,
        n_agents: Mapping[str, int],
        learning: Collection[str],
        device: torch.device,
        info: InfoRules | None = None,
    ):
        self.learning, self.device = learning, device
        self.infos = EpisodeInfos(info or InfoRules())
        self.returns = {name: EpisodeReturns(n_envs, count, device) for name, count in n_agents.items()}
        self.lengths = EpisodeReturns(n_envs, 1, device)

    def figures(self, rollout: RolloutBuffer) -> dict[str, Tensor]:
        """Means over the episodes that ended in this rollout, of all processes (NaN where none did)."""
        done, ends = rollout.done, Ends(rollout.done)
        ended = distributed.total(done.sum())
        figures, means = {}, []
        for name, returns in self.returns.items():
            totals = returns.add(rollout.reward[name], ends).mean(-1)
            mean = distributed.total((totals * done).sum()) / ended
            means += [mean] * (name in self.learning)
            if len(self.returns) > 1:
                figures[f"{name}/episode_return"] = mean
        lived = (~rollout.idle(slice(0, -1))).float().unsqueeze(-1)
        lengths = self.lengths.add(lived, ends).squeeze(-1)
        figures["episode_return"] = torch.stack(means).mean()
        figures["episode_length"] = distributed.total((lengths * done).sum()) / ended
        figures["episodes"] = ended
        if rollout.info is not None:
            self.infos.share_names(rollout.info)
            living = {name: rollout.masks[name]["alive"][:-1] for name in rollout.ends}
            told = ended_means(self.infos.reduce(rollout.info, ends, living), ends)
            figures |= {figure(group, key, self.returns): mean for (group, key), mean in told.items()}
        return figures

    def told(self) -> set[str]:
        """Names of the infos' figures that any rollout had."""
        kinds = self.infos.rules.kinds
        return {figure(g, f"{name}/{kind}", self.returns) for g, name in self.infos.names() for kind in kinds(name)}

    def state_dict(self) -> dict:
        """Returns, lengths and infos so far of the episodes that are still running."""
        infos = self.infos.state_dict()
        return ({"infos": infos} if infos else {}) | {
            "returns": {name: returns.carry for name, returns in self.returns.items()},
            "lengths": self.lengths.carry,
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Continue from `state_dict`, bitwise identically; further keys are not read."""
        for name, carry in state["returns"].items():
            self.returns[name].load(carry)
        self.lengths.load(state["lengths"])
        self.infos.load(state.get("infos", {}), self.device)
