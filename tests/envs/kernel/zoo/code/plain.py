"""Pure scenarios in every common style: they must keep their kernels."""

import math

import torch
from vmas.simulator.core import Agent, Landmark, Sphere, World

from tests.envs.kernel.zoo.base import Zoo

GOAL = (0.5, -0.5)
PAY = {"near": 1.0, "far": -0.1}


class Nothing(Zoo):
    """Nothing beside the base."""

    EXPECT = "kernel"


class ClassParameters(Zoo):
    """Parameters on the class."""

    EXPECT, SCALE, LIMIT = "kernel", 0.5, 0.8

    def reward(self, agent):
        return self.SCALE * agent.state.pos[:, 0].clamp(-self.LIMIT, self.LIMIT)


class Inherited(ClassParameters):
    """A subclass with other parameters that calls super()."""

    EXPECT, SCALE = "kernel", 2.0

    def reward(self, agent):
        return super().reward(agent) + 1.0


class ModuleParameters(Zoo):
    """Parameters of the module, a tuple and a dictionary."""

    EXPECT = "kernel"

    def reward(self, agent):
        apart = (agent.state.pos - torch.tensor(GOAL)).norm(dim=-1)
        return torch.where(apart < 0.3, PAY["near"], PAY["far"])


class Keywords(Zoo):
    """Keywords of make_world kept on the instance."""

    EXPECT = "kernel"

    def make_world(self, batch_dim, device, **kwargs):
        self.pay = kwargs.pop("pay", 3.0)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return self.pay * agent.state.pos[:, 0]


class Landmarks(Zoo):
    """A goal whose place each reset draws."""

    EXPECT, ALONE = "kernel", True

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        self.goal = Landmark("goal", collide=False)
        world.add_landmark(self.goal)
        return world

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        rows = self.world.batch_dim if env_index is None else 1
        self.goal.set_pos(2 * torch.rand(rows, 2) - 1, batch_index=env_index)

    def observation(self, agent):
        return torch.cat([agent.state.pos, self.goal.state.pos - agent.state.pos], -1)

    def reward(self, agent):
        return -(agent.state.pos - self.goal.state.pos).norm(dim=-1)

    def done(self):
        return (self.world.agents[0].state.pos - self.goal.state.pos).norm(dim=-1) < 0.2


class Shaped(Landmarks):
    """Potential-based shaping, the last potential kept in a tensor on the agent."""

    EXPECT = "kernel"

    def potential(self, agent):
        """[E]: minus the distance."""
        return -(agent.state.pos - self.goal.state.pos).norm(dim=-1)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        for agent in self.world.agents:
            if env_index is None:
                agent.last = self.potential(agent)
            else:
                agent.last[env_index] = self.potential(agent)[env_index]

    def reward(self, agent):
        now = self.potential(agent)
        gain = now - agent.last
        agent.last = now
        return gain


class SharedReward(Zoo):
    """The first agent computes the reward, the others read it from the scenario."""

    EXPECT, AGENTS = "kernel", 2

    def reward(self, agent):
        if agent is self.world.agents[0]:
            self.rew = torch.zeros(self.world.batch_dim)
            for a in self.world.agents:
                self.rew += a.state.pos[:, 0]
        return self.rew


class IsFirst(Zoo):
    """`is_first` and `is_last` as VMAS's scenarios write them."""

    EXPECT, AGENTS = "kernel", 2

    def reward(self, agent):
        is_first, is_last = agent == self.world.agents[0], agent == self.world.agents[-1]
        if is_first:
            self.common = agent.state.pos[:, 0].abs()
        return self.common if not is_last else self.common * 0.5


class Infos(Zoo):
    """Infos of floats, whole numbers and truths."""

    EXPECT = "kernel"

    def info(self, agent):
        out = agent.state.pos[:, 0] > 0.5
        return {"out": out, "count": out.long(), "pos": agent.state.pos}


class Aged(Zoo):
    """Each environment's age in a tensor, reset by index."""

    EXPECT = "kernel"

    def make_world(self, batch_dim, device, **kwargs):
        self.age = torch.zeros(batch_dim, device=device)
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        if env_index is None:
            self.age = torch.zeros(self.world.batch_dim)
        else:
            self.age[env_index] = 0

    def post_step(self):
        self.age = self.age + 1

    def reward(self, agent):
        return torch.where(self.age > 20, agent.state.pos[:, 0], self.age * 0.1)


class Trigonometry(Zoo):
    """math constants, sin, cos, exp."""

    EXPECT = "kernel"

    def reward(self, agent):
        angle = torch.atan2(agent.state.pos[:, 1], agent.state.pos[:, 0])
        return torch.cos(angle - math.pi / 3) * torch.exp(-agent.state.vel.norm(dim=-1)) + math.sin(0.5)


class Helped(Zoo):
    """Static methods, class methods, properties, lambdas, locals in comprehensions."""

    EXPECT = "kernel"
    weights = property(lambda self: [1.0, 0.5])

    @staticmethod
    def square(x):
        """x squared."""
        return x * x

    @classmethod
    def scaled(cls, x, by=0.3):
        """x times a default."""
        return x * by

    def reward(self, agent):
        twice = lambda x: 2 * x  # noqa: E731 - users write them
        parts = [w * self.square(agent.state.pos[:, i]) for i, w in enumerate(self.weights)]
        return twice(self.scaled(sum(parts)))


class Forced(Zoo):
    """process_action adds a wind that depends on the place."""

    EXPECT = "kernel"

    def process_action(self, agent):
        agent.action.u = agent.action.u + 0.2 * torch.sin(3 * agent.state.pos)


class Walled(Zoo):
    """post_step puts back those who left, by a mask."""

    EXPECT = "kernel"

    def post_step(self):
        agent = self.world.agents[0]
        agent.state.pos = agent.state.pos.clamp(-0.9, 0.9)

    def done(self):
        return self.world.agents[0].state.pos[:, 1].abs() >= 0.9


class Colliding(Zoo):
    """Two agents that push each other."""

    EXPECT = "kernel"

    def make_world(self, batch_dim, device, **kwargs):
        world = World(batch_dim, device, substeps=2)
        for i in range(2):
            world.add_agent(Agent(name=f"agent_{i}", shape=Sphere(0.1), collide=True))
        return world


class DictObservation(Zoo):
    """Observations as dictionaries."""

    EXPECT = "kernel"

    def observation(self, agent):
        return {"pos": agent.state.pos, "vel": agent.state.vel}


class InitialisedElsewhere(Zoo):
    """Attributes that only reset_world_at makes."""

    EXPECT = "kernel"

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        start = self.world.agents[0].state.pos.clone()
        if env_index is None:
            self.start = start
        else:
            self.start[env_index] = start[env_index]

    def reward(self, agent):
        return (agent.state.pos - self.start).norm(dim=-1)
