"""A user's own scenario, outside of the package: a counter that ends each environment after a drawn number of steps."""

import pytest

SOURCE = '''
"""A scenario whose every quantity can be told in advance."""

import torch
from vmas.simulator.core import Agent, World
from vmas.simulator.scenario import BaseScenario
from vmas.simulator.utils import ScenarioUtils


class Countdown(BaseScenario):
    """Observation: [steps done, steps until the end, label drawn at reset]; reward: 1 per step."""

    def make_world(self, batch_dim, device, **kwargs):
        self.shortest = kwargs.pop("shortest", 2)
        self.longest = kwargs.pop("longest", 6)
        n_agents = kwargs.pop("n_agents", 2)
        ScenarioUtils.check_kwargs_consumed(kwargs)
        assert self.shortest <= self.longest, "shortest must not exceed longest"
        world = World(batch_dim, device)
        for i in range(n_agents):
            world.add_agent(Agent(f"agent_{i}", collide=False))
        self.count = torch.zeros(batch_dim, device=device)
        self.limit = torch.zeros(batch_dim, device=device)
        self.label = torch.zeros(batch_dim, device=device)
        self.alias = self.count  # one tensor under two names: must stay one
        self.table = torch.arange(5.0)  # a constant of five entries: no state, even with five environments
        return world

    def reset_world_at(self, env_index=None):
        rows = slice(None) if env_index is None else env_index
        n = self.world.batch_dim if env_index is None else 1
        self.count[rows] = 0.0
        self.limit[rows] = torch.randint(self.shortest, self.longest + 1, (n,)).float()
        self.label[rows] = torch.rand(n)

    def reward(self, agent):
        if agent is self.world.agents[0]:
            self.alias += 1.0
        return torch.ones_like(self.count)

    def observation(self, agent):
        return torch.stack([self.count, self.limit, self.label], -1)

    def done(self):
        return self.count >= self.limit

    def info(self, agent):
        return {"count": self.count, "both": torch.stack([self.count, self.limit], -1), "own": {"limit": self.limit}}


Scenario = Countdown
'''


@pytest.fixture(scope="session")
def own_scenario(tmp_path_factory: pytest.TempPathFactory):
    """The dotted path of Countdown, in a module of its own on the Python path."""
    import sys

    folder = tmp_path_factory.mktemp("own")
    (folder / "countdown_scenario.py").write_text(SOURCE)
    sys.path.insert(0, str(folder))
    yield "countdown_scenario.Countdown"
    sys.path.remove(str(folder))
