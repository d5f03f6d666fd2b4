"""A scenario whose agents end each on its own, run out of fuel, and see several parts."""

import torch
from vmas.simulator.core import Agent, Landmark, Sphere, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils

NEAR, FUEL = 0.15, 20.0


class Errands(BaseScenario):
    """Each agent goes to a goal of its own, and its episode ends there. Moving burns fuel; without it it can't move."""

    def make_world(self, batch_dim, device, **kwargs):
        self.reach = kwargs.pop("reach", 1.0)  # largest distance of agents and goals from the middle, along an axis
        n_agents = kwargs.pop("n_agents", 2)
        ScenarioUtils.check_kwargs_consumed(kwargs)
        world = World(batch_dim, device, x_semidim=1, y_semidim=1)
        for i in range(n_agents):
            world.add_agent(Agent(f"agent_{i}", shape=Sphere(0.05), collide=False))
            world.add_landmark(Landmark(f"goal_{i}", shape=Sphere(0.1), collide=False))
        self.fuel = torch.zeros(batch_dim, n_agents, device=device)
        return world

    def reset_world_at(self, env_index=None):
        rows = self.world.batch_dim if env_index is None else 1
        for entity in self.world.entities:
            place = torch.empty(rows, 2, device=self.world.device).uniform_(-1, 1)
            entity.set_pos(self.reach * place, batch_index=env_index)
        self.fuel[slice(None) if env_index is None else env_index] = FUEL

    def process_action(self, agent):
        i = self.world.agents.index(agent)
        moves = agent.action.u.norm(dim=-1) > 0
        self.fuel[:, i] = (self.fuel[:, i] - moves.float()).clamp(min=0)

    def distance(self, agent):
        goal = self.world.landmarks[self.world.agents.index(agent)]
        return (agent.state.pos - goal.state.pos).norm(dim=-1)

    def observation(self, agent):
        i = self.world.agents.index(agent)
        others = [other.state.pos - agent.state.pos for other in self.world.agents if other is not agent]
        return {
            "position": torch.cat([agent.state.pos, agent.state.vel], -1),
            "goal": self.world.landmarks[i].state.pos - agent.state.pos,
            "fuel": self.fuel[:, i : i + 1] / FUEL,
            "others": torch.stack(others, -2),  # a set: [E, n_agents - 1, 2]
        }

    def reward(self, agent):
        return -self.distance(agent)

    def done(self):
        """bool [E, A]: whose episode is over, each on its own."""
        return torch.stack([self.distance(agent) < NEAR for agent in self.world.agents], -1)

    def action_mask(self, agent):
        """bool [E, 9]: standing still is always allowed, the eight directions while there is fuel."""
        moves = self.fuel[:, self.world.agents.index(agent)] > 0
        return torch.stack([torch.ones_like(moves), *[moves] * 8], -1)

    def info(self, agent):
        return {"success": self.distance(agent) < NEAR, "fuel": self.fuel[:, self.world.agents.index(agent)]}
