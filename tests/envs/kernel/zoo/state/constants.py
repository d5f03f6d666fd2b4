"""One value per environment, or as many as there are environments, outside of tensors and never written again."""

import random

import numpy as np
import torch

from tests.envs.kernel.zoo.base import Zoo


class NeverWritten(Zoo):
    """A list of one name per environment, made with the world and never changed."""

    EXPECT, CAUSE = "either", "names"

    def make_world(self, batch_dim, device, **kwargs):
        self.names = [f"environment {i}" for i in range(batch_dim)]
        return super().make_world(batch_dim, device, **kwargs)


class NumberedTasks(Zoo):
    """A NumPy array of one task per environment, made with the world and never changed."""

    EXPECT, CAUSE = "eager", "task"

    def make_world(self, batch_dim, device, **kwargs):
        self.task = np.arange(batch_dim, dtype=np.float32) % 3
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos[:, 0] * torch.from_numpy(self.task)


class AsManyAsEnvironments(Zoo):
    """A constant list of five numbers, with five environments: no state."""

    EXPECT = "kernel"

    def make_world(self, batch_dim, device, **kwargs):
        self.weights = [0.1, 0.2, 0.3, 0.4, 0.5]
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos[:, 0] * sum(self.weights)


class DicePerEnvironment(Zoo):
    """A `random.Random` for each environment, drawn from in every step."""

    EXPECT, CAUSE, REFUSABLE = "eager", "dice", True

    def make_world(self, batch_dim, device, **kwargs):
        self.dice = [random.Random(i) for i in range(batch_dim)]
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return torch.tensor([dice.random() for dice in self.dice])
