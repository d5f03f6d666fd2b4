"""Python decisions about tensors: loops until nobody objects, max and min and sorted, sums."""

import torch

from tests.envs.kernel.zoo.base import Zoo, flat


class _Loop(Zoo):
    """Wraps a number into [0, 1] by subtracting while anybody is above."""

    SCALE = 1.0

    def reward(self, agent):
        value = agent.state.pos[:, 0].abs() * self.SCALE
        while (value > 1).any():
            value = torch.where(value > 1, value - 1, value)
        return value


class Loop3(_Loop):
    """A loop of at most 3 rounds."""

    EXPECT, SCALE = "either", 2.7


class Loop12(_Loop):
    """A loop of at most 12 rounds."""

    EXPECT, SCALE = "either", 11.3


class Loop40(_Loop):
    """A loop of about 40 rounds: beyond what a trace unrolls."""

    EXPECT, SCALE, ALONE = "either", 40.0, True


class LoopCounts(Zoo):
    """The number of rounds that the whole batch needed is the reward."""

    EXPECT = "eager"

    def reward(self, agent):
        value, rounds = agent.state.pos[:, 0].abs() * 5, 0
        while (value > 1).any():
            value, rounds = torch.where(value > 1, value - 1, value), rounds + 1
        return flat(agent, float(rounds))


class LoopBreaks(Zoo):
    """A `for` that breaks as soon as all are inside."""

    EXPECT = "either"

    def reward(self, agent):
        value = agent.state.pos[:, 0].abs() * 3
        for _ in range(10):
            if (value <= 1).all():
                break
            value = torch.where(value > 1, value * 0.5, value)
        return value


class PythonMax(Zoo):
    """Python's max() of two tensors' means."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, 1.0) * max(agent.state.pos[:, 0].mean(), agent.state.pos[:, 1].mean())


class PythonMin(Zoo):
    """Python's min() of a number and the batch's mean."""

    EXPECT = "eager"

    def reward(self, agent):
        return agent.state.pos[:, 0] * min(0.2, agent.state.pos[:, 1].mean())


class PythonSorted(Zoo):
    """sorted() of one number per agent, by their means over the batch."""

    EXPECT, AGENTS = "eager", 2

    def reward(self, agent):
        first = sorted(self.world.agents, key=lambda a: a.state.pos[:, 0].mean())[0]
        return first.state.pos[:, 0]


class PythonSum(Zoo):
    """Python's sum() over the agents' tensors: only arithmetic."""

    EXPECT, AGENTS = "kernel", 2

    def reward(self, agent):
        return sum(a.state.pos[:, 0] for a in self.world.agents)
