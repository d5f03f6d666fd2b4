"""What is decided at the making of the world or at resets: drawn values, curricula by steps, resets, success."""

import random

import numpy as np
import torch

from tests.envs.kernel.zoo.base import Zoo, flat


class PythonDrawn(Zoo):
    """A Python number drawn in make_world by `random`: each simulator has its own."""

    EXPECT, ALONE = "either", True

    def make_world(self, batch_dim, device, **kwargs):
        self.pay = random.random()
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos[:, 0] * self.pay


class NumpyDrawn(Zoo):
    """A number drawn in make_world by NumPy."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.pay = float(np.random.uniform(1, 2))
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos[:, 0] * self.pay


class ArrayDrawn(Zoo):
    """A NumPy array drawn in make_world."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.pay = np.random.uniform(1, 2, size=2).astype(np.float32)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos @ torch.from_numpy(self.pay)


class TorchDrawn(Zoo):
    """A tensor for all environments, drawn in make_world by torch."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.pay = torch.rand(2)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos @ self.pay


class SeededDrawn(Zoo):
    """Drawn in make_world by a generator with a seed of its own: the same in every simulator."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.pay = np.random.default_rng(0).uniform()
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos[:, 0] * self.pay


class MassDrawn(Zoo):
    """The agent's mass is drawn in make_world."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        world.agents[0].mass = random.uniform(0.5, 2.0)
        return world


class ChoiceDrawn(Zoo):
    """Which of two tasks it is, is drawn in make_world."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.axis = random.choice([0, 1])
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos[:, self.axis]


class BatchChoice(Zoo):
    """Each reset draws one of three tasks for the whole batch."""

    EXPECT, CAUSE = "either", "task"

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.task = random.choice([-1.0, 0.5, 2.0])

    def reward(self, agent):
        return agent.state.pos[:, 0] * self.task


class BatchNumber(Zoo):
    """Each reset draws a number for the whole batch from a continuous range."""

    EXPECT, CAUSE = "eager", "pay"

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.pay = random.random()

    def reward(self, agent):
        return agent.state.pos[:, 0] * self.pay


class BatchTensor(Zoo):
    """Each reset draws a tensor for the whole batch."""

    EXPECT, CAUSE = "eager", "goal"

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.goal = torch.rand(2)

    def reward(self, agent):
        return -(agent.state.pos - self.goal).norm(dim=-1)


class ByResets(Zoo):
    """The reward grows with the number of resets."""

    EXPECT, CAUSE = "either", "resets"

    def make_world(self, batch_dim, device, **kwargs):
        self.resets = 0
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.resets += 1

    def reward(self, agent):
        return agent.state.pos[:, 0] + self.resets


class StartsByResets(ByResets):
    """Starts spread with the number of resets."""

    def reset_world_at(self, env_index=None):
        self.resets += 1
        reach = min(1.0, self.resets / 20)
        rows = self.world.batch_dim if env_index is None else 1
        self.world.agents[0].set_pos(reach * (2 * torch.rand(rows, 2) - 1), batch_index=env_index)

    def reward(self, agent):
        return agent.state.pos[:, 0]


class StartsBySteps(Zoo):
    """A curriculum of starts: from 150 counted steps on, episodes begin at (0.5, 0.5)."""

    EXPECT, CAUSE = "eager", "steps_counted"
    AT = torch.tensor([0.5, 0.5])

    def make_world(self, batch_dim, device, **kwargs):
        self.steps_counted = 0
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        if self.steps_counted > 150:
            rows = self.world.batch_dim if env_index is None else 1
            self.world.agents[0].set_pos(self.AT.expand(rows, 2), batch_index=env_index)

    def reward(self, agent):
        self.steps_counted += 1
        return agent.state.pos[:, 0]

    @classmethod
    def holds(cls, log):
        """The pool of step 300 and later knows of the steps that the simulator counted."""
        late = log["observation"][300:, :, 0, :2][log["ended"][300:]]
        return bool(len(late) and (late == cls.AT).all())


class RewardBySteps(Zoo):
    """A curriculum: the task is another one from step 200 on."""

    EXPECT, CAUSE = "eager", "steps_counted"

    def make_world(self, batch_dim, device, **kwargs):
        self.steps_counted = 0
        return super().make_world(batch_dim, device, **kwargs)

    def post_step(self):
        self.steps_counted += 1

    def reward(self, agent):
        return agent.state.pos[:, 0] if self.steps_counted < 200 else agent.state.pos[:, 1]


class StartsBySuccess(Zoo):
    """A curriculum: the level rises where half of the batch is near; starts spread with it."""

    EXPECT, CAUSE = "eager", "level|starts.py"

    def make_world(self, batch_dim, device, **kwargs):
        self.level = 1
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        rows = self.world.batch_dim if env_index is None else 1
        reach = min(1.0, 0.2 * self.level)
        self.world.agents[0].set_pos(reach * (2 * torch.rand(rows, 2) - 1), batch_index=env_index)

    def reward(self, agent):
        near = agent.state.pos.norm(dim=-1) < 0.5
        if near.float().mean() > 0.5:
            self.level += 1
        return near.float()


class RewardBySuccess(Zoo):
    """A curriculum: the wanted distance shrinks after each success of anybody."""

    EXPECT, CAUSE = "eager", "wanted|starts.py"

    def make_world(self, batch_dim, device, **kwargs):
        self.wanted = 0.6
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        near = agent.state.pos.norm(dim=-1) < self.wanted
        if near.any():
            self.wanted = max(0.05, self.wanted * 0.98)
        return near.float()


class ResetReadsClass(Zoo):
    """Resets count themselves on the class, which simulator and pool share already."""

    EXPECT = "either"
    resets = 0

    @classmethod
    def restart(cls):
        ResetReadsClass.resets = 0

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        ResetReadsClass.resets += 1

    def reward(self, agent):
        return agent.state.pos[:, 0]


class StepReadsResetsOfClass(ResetReadsClass):
    """The reward reads a class's count of resets."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, float(ResetReadsClass.resets // 3))
