"""Small networks in a scenario: fixed, drawn, normalising over the batch, dropping out, learning."""

import torch
from torch import nn

from tests.envs.kernel.zoo.base import Zoo


def fixed(module):
    """A network whose weights are the same in every process, and which nobody trains."""
    for n, weight in enumerate(module.parameters()):
        weight.requires_grad_(False).copy_(torch.linspace(-0.5, 0.5, weight.numel()).view_as(weight) + 0.1 * n)
    return module


class _Network(Zoo):
    """Pays what `net` says of the agent's place."""

    CAUSE = "net"

    def network(self):
        """The network."""

    def make_world(self, batch_dim, device, **kwargs):
        self.net = self.network()
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        with torch.no_grad():
            return self.net(agent.state.pos)[:, 0]


class Fixed(_Network):
    """A linear layer whose weights are given."""

    EXPECT = "either"

    def network(self):
        return fixed(nn.Linear(2, 1))


class FixedDeep(_Network):
    """Two layers and a tanh, weights given."""

    EXPECT = "either"

    def network(self):
        return fixed(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)))


class Drawn(_Network):
    """A linear layer with torch's own initialisation: each simulator draws its own."""

    EXPECT, ALONE = "either", True

    def network(self):
        return nn.Linear(2, 1).requires_grad_(False)


class DrawnWithGradients(_Network):
    """As torch makes it: weights that want gradients."""

    EXPECT = "either"

    def network(self):
        return nn.Linear(2, 1)


class SeededNetwork(_Network):
    """Weights drawn after `torch.manual_seed(3)` in make_world."""

    EXPECT = "either"

    def network(self):
        torch.manual_seed(3)
        return nn.Linear(2, 1).requires_grad_(False)


class BatchNormTraining(_Network):
    """BatchNorm in training mode: environments meet, and buffers move."""

    EXPECT = "eager"

    def network(self):
        return fixed(nn.BatchNorm1d(2, momentum=0.1)).train()


class BatchNormEvaluating(_Network):
    """BatchNorm in evaluation mode: a constant affine map."""

    EXPECT = "either"

    def network(self):
        return fixed(nn.BatchNorm1d(2)).eval()


class Dropping(_Network):
    """Dropout in training mode: noise of the environment's own stream."""

    EXPECT = "either"

    def network(self):
        return nn.Dropout(0.3).train()


class Learning(_Network):
    """A predictor that learns with every step, whose error is the reward (curiosity)."""

    EXPECT = "eager"

    def network(self):
        return fixed(nn.Linear(2, 2)).requires_grad_(True)

    def reward(self, agent):
        with torch.enable_grad():
            error = (self.net(agent.state.pos.detach()) - agent.state.vel.detach()).square().sum(-1)
            self.net.zero_grad()
            error.mean().backward()
        with torch.no_grad():
            for weight in self.net.parameters():
                weight -= 0.01 * weight.grad
        return error.detach()


class Counting(_Network):
    """A network whose forward counts its calls."""

    EXPECT = "eager"

    def network(self):
        return _Counts()


class _Counts(nn.Module):
    """Multiplies by one, and by two from the 200th call on."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        """[E, F] to [E, F]."""
        self.calls += 1
        return x * (2.0 if self.calls > 200 else 1.0)
