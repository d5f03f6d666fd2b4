"""Indexing, and what lets environments meet: masks, nonzero, gather, cumsum and sort over the batch."""

import torch

from tests.envs.kernel.zoo.base import Zoo, flat


class MaskedWrite(Zoo):
    """`r[mask] = v`."""

    EXPECT, ALONE = "kernel", True

    def reward(self, agent):
        value = agent.state.pos[:, 0].clone()
        value[agent.state.pos[:, 1] > 0.2] = -1.0
        return value


class MaskedRead(Zoo):
    """`r[mask] = x[mask] * 2`."""

    EXPECT = "kernel"

    def reward(self, agent):
        value, mask = agent.state.pos[:, 0].clone(), agent.state.pos[:, 1] > 0.2
        value[mask] = agent.state.vel[mask][:, 0] * 2
        return value


class MaskedMean(Zoo):
    """The mean of what a mask selects, paid to all."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, 1.0) * agent.state.pos[agent.state.pos[:, 0] > -2.0].mean()


class MaskedCount(Zoo):
    """`len(x[mask])`: how many environments are out."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, float(len(agent.state.pos[agent.state.pos[:, 1] > 0.2])))


class MaskedShape(Zoo):
    """`x[mask].shape[0]` decides a branch."""

    EXPECT = "eager"

    def reward(self, agent):
        some = agent.state.pos[agent.state.pos[:, 1] > 0.8].shape[0]
        return agent.state.pos[:, 0] if some else agent.state.pos[:, 1]


class Nonzero(Zoo):
    """`nonzero` and a loop over the environments that it gives."""

    EXPECT = "eager"

    def reward(self, agent):
        value = agent.state.pos[:, 0].clone()
        for i in (agent.state.pos[:, 1] > 0.2).nonzero():
            value[i] = 3.0
        return value


class WhereOnly(Zoo):
    """`torch.where(condition)` with one argument."""

    EXPECT = "eager"

    def reward(self, agent):
        value = agent.state.pos[:, 0].clone()
        value[torch.where(agent.state.pos[:, 1] > 0.2)[0]] = 3.0
        return value


class LoopOverEnvironments(Zoo):
    """A Python loop over the environments."""

    EXPECT = "eager"

    def reward(self, agent):
        return torch.stack([agent.state.pos[i].norm() for i in range(self.world.batch_dim)])


class Iterated(Zoo):
    """`for place in pos`: the loop that a tensor itself gives."""

    EXPECT = "eager"

    def reward(self, agent):
        return torch.stack([place.norm() for place in agent.state.pos])


class IndexPut(Zoo):
    """`index_put_` at one entry per environment."""

    EXPECT = "either"

    def reward(self, agent):
        table = torch.zeros(self.world.batch_dim, 3)
        column = (agent.state.pos[:, 0] > 0).long() + (agent.state.pos[:, 0] > 0.5).long()
        table.index_put_((torch.arange(self.world.batch_dim), column), torch.ones(()))
        return table @ torch.tensor([1.0, 2.0, 3.0])


class Gathered(Zoo):
    """`gather` of each environment's own column."""

    EXPECT = "either"

    def reward(self, agent):
        column = (agent.state.pos[:, 0] > 0).long()[:, None]
        return agent.state.pos.gather(1, column)[:, 0]


class GatheredAcross(Zoo):
    """`gather` along the environments: each gets another's number."""

    EXPECT = "eager"

    def reward(self, agent):
        order = torch.arange(self.world.batch_dim).flip(0)
        return agent.state.pos[:, 0].gather(0, order)


class CumsumOverBatch(Zoo):
    """`cumsum` over the batch."""

    EXPECT = "eager"

    def reward(self, agent):
        return agent.state.pos[:, 0].cumsum(0)


class SortedOverBatch(Zoo):
    """`sort` over the batch: rank among the environments."""

    EXPECT = "eager"

    def reward(self, agent):
        return agent.state.pos[:, 0].argsort().argsort().float()


class NormalisedOverBatch(Zoo):
    """The reward less its mean over the batch."""

    EXPECT, ALONE = "eager", True

    def reward(self, agent):
        return agent.state.pos[:, 0] - agent.state.pos[:, 0].mean()


class RolledOverBatch(Zoo):
    """`roll` by one environment."""

    EXPECT = "eager"

    def observation(self, agent):
        return torch.cat([agent.state.pos, agent.state.pos.roll(1, 0)], -1)


class FirstOfBatch(Zoo):
    """All get what environment 0 gets."""

    EXPECT = "eager"

    def reward(self, agent):
        return agent.state.pos[0, 0].expand(self.world.batch_dim)


class LastOfBatch(Zoo):
    """`pos[-1]` is another environment in every batch."""

    EXPECT = "eager"

    def observation(self, agent):
        return torch.cat([agent.state.pos, agent.state.pos[-1:].expand(self.world.batch_dim, 2)], -1)


class HalfOfBatch(Zoo):
    """The first half of the environments has another task."""

    EXPECT = "eager"

    def reward(self, agent):
        value = agent.state.pos[:, 0].clone()
        value[: self.world.batch_dim // 2] *= -1
        return value


class NumberOfEnvironment(Zoo):
    """`torch.arange(batch_dim)` is part of the observation."""

    EXPECT, CAUSE, ALONE = "eager", "number of an environment", True

    def observation(self, agent):
        return torch.cat([agent.state.pos, torch.arange(self.world.batch_dim).float()[:, None]], -1)


class NumberKept(Zoo):
    """`torch.arange(batch_dim)`, kept from make_world, decides the task of each environment."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.task = torch.arange(batch_dim) % 3
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos[:, 0] * self.task


class TablePerEnvironment(Zoo):
    """Weights drawn per environment in make_world, never written again."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.weight = torch.rand(batch_dim, 2)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return (agent.state.pos * self.weight).sum(-1)


class OneHot(Zoo):
    """`one_hot` of each environment's own class."""

    EXPECT = "kernel"

    def observation(self, agent):
        found = torch.nn.functional.one_hot((agent.state.pos[:, 0] > 0).long(), 2)
        return torch.cat([agent.state.pos, found], -1)
