"""A scenario with a table: which of 400 cells an agent has been in, state that is indexed by data."""

import torch
from torch import Tensor
from vmas.simulator.core import Agent, World
from vmas.simulator.scenario import BaseScenario


class Grid(BaseScenario):
    """One agent; reward: 1 in a cell that it has not been in since the reset."""

    def make_world(self, batch_dim: int, device: torch.device, **kwargs) -> World:
        world = World(batch_dim, device)
        world.add_agent(Agent("agent_0", collide=False))
        self.visited = torch.zeros(batch_dim, 20, 20, dtype=torch.bool, device=device)
        self.rows = torch.arange(batch_dim, device=device)
        return world

    def reset_world_at(self, env_index: int | None = None) -> None:
        rows = self.world.batch_dim if env_index is None else 1
        place = 2 * torch.rand(rows, 2, device=self.world.device) - 1
        self.world.agents[0].set_pos(place, batch_index=env_index)
        self.visited[slice(None) if env_index is None else env_index] = False

    def reward(self, agent: Agent) -> Tensor:
        cell = ((agent.state.pos.clamp(-0.999, 0.999) + 1) * 10).to(torch.long)
        rows = torch.arange(self.world.batch_dim)
        known = self.visited[rows, cell[:, 0], cell[:, 1]]
        self.visited[rows, cell[:, 0], cell[:, 1]] = True
        return (~known).float()

    def observation(self, agent: Agent) -> Tensor:
        return torch.cat([agent.state.pos, agent.state.vel], -1)
