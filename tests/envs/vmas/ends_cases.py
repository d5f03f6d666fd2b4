"""Scenarios whose agents end each on its own, come and go, and may not choose everything."""

import torch
from torch import Tensor

from tests.envs.kernel.zoo.base import Zoo


class Arrive(Zoo):
    """Each of three agents is done once it has been left of its line; the first may begin there, and is dead then."""

    AGENTS = 3
    LINES = (-0.7, -0.4, 0.0)

    def reset_world_at(self, env_index: int | None = None) -> None:
        super().reset_world_at(env_index)
        fresh = torch.zeros(self.world.batch_dim, self.AGENTS, dtype=torch.bool, device=self.world.device)
        if env_index is None:
            self.arrived = fresh
        else:
            self.arrived[env_index] = False

    def post_step(self) -> None:
        self.arrived = self.arrived | self._left()

    def _left(self) -> Tensor:
        return torch.stack([a.state.pos[:, 0] < x for a, x in zip(self.world.agents, self.LINES, strict=True)], -1)

    def done(self) -> Tensor:
        return self.arrived


class Visit(Zoo):
    """Three slots: an agent of slot i is there in every other span of 3 + i steps, and is done for good beyond 1.

    Choices: the first of the nine (to stand still) is allowed always, the others while the agent is in the upper half.
    """

    AGENTS = 3

    def reset_world_at(self, env_index: int | None = None) -> None:
        super().reset_world_at(env_index)
        if env_index is None:
            self.time = torch.zeros(self.world.batch_dim, device=self.world.device)
        else:
            self.time[env_index] = 0.0

    def post_step(self) -> None:
        self.time = self.time + 1.0

    def _slot(self, agent) -> int:
        return self.world.agents.index(agent)

    def alive(self, agent) -> Tensor:
        return torch.remainder(torch.floor(self.time / (3 + self._slot(agent))), 2.0) == 0.0

    def done(self) -> Tensor:
        return torch.stack([agent.state.pos.abs().amax(-1) > 1.0 for agent in self.world.agents], -1)

    def action_mask(self, agent) -> Tensor:
        upper = agent.state.pos[:, 1] > 0.0
        return torch.stack([torch.ones_like(upper)] + [upper] * 8, -1)


class Veil(Visit):
    """The same slots where the episode ends for all at once."""

    def done(self) -> Tensor:
        return self.world.agents[0].state.pos.abs().amax(-1) > 1.0


class Unequal(Visit):
    """A mask of another width."""

    def action_mask(self, agent) -> Tensor:
        return super().action_mask(agent)[:, :5]


class Strange(Zoo):
    """A done for two agents, though there are three."""

    AGENTS = 3

    def done(self) -> Tensor:
        return torch.stack([agent.state.pos[:, 0] > 1.0 for agent in self.world.agents[:2]], -1)
