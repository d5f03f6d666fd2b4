"""A scenario of one's own for VMAS: agents gather at a beacon that only one of them sees."""

import torch
from vmas.simulator.core import Agent, Landmark, Sphere, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import Color, ScenarioUtils


class Gather(BaseScenario):
    """Reward per step, common to all: minus the agents' mean distance to the beacon. Ends when all are within 0.1."""

    def make_world(self, batch_dim, device, **kwargs):
        n_agents = kwargs.pop("n_agents", 3)  # a keyword of `env.scenario_kwargs`
        ScenarioUtils.check_kwargs_consumed(kwargs)  # so that a misspelt one is refused
        world = World(batch_dim, device, x_semidim=1, y_semidim=1)
        for i in range(n_agents):
            world.add_agent(Agent(f"agent_{i}", shape=Sphere(0.05), collide=False))
        self.beacon = Landmark("beacon", shape=Sphere(0.1), collide=False, color=Color.GREEN)
        world.add_landmark(self.beacon)
        return world

    def reset_world_at(self, env_index=None):
        # What is drawn here, one row per environment, is where each environment's episodes begin.
        shape = (1 if env_index is not None else self.world.batch_dim, self.world.dim_p)
        for entity in (*self.world.agents, self.beacon):
            place = torch.empty(shape, device=self.world.device).uniform_(-1, 1)
            entity.set_pos(place, batch_index=env_index)

    def distances(self):
        places = torch.stack([agent.state.pos for agent in self.world.agents], -2)
        return (places - self.beacon.state.pos.unsqueeze(-2)).norm(dim=-1)

    def reward(self, agent):
        return -self.distances().mean(-1)

    def observation(self, agent):
        guide = self.world.agents[0]
        sees = self.beacon.state.pos - agent.state.pos
        return torch.cat([
            agent.state.pos,
            agent.state.vel,
            guide.state.pos - agent.state.pos,
            sees if agent is guide else torch.zeros_like(sees),
        ], -1)  # fmt: skip

    def done(self):
        return (self.distances() < 0.1).all(-1)
