"""Numbers that go wrong late or seldom: whole ones, wide ones, NaN, tables, draws."""

import torch

from tests.envs.kernel.zoo.base import Zoo, flat
from tests.envs.kernel.zoo.code.late import Aged


class RareDraw(Zoo):
    """Three resets of a thousand are hard: while a kernel is made none may be."""

    EXPECT = "kernel"

    def make_world(self, batch_dim, device, **kwargs):
        self.hard = torch.zeros(batch_dim)
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        if env_index is None:
            self.hard = (torch.rand(self.world.batch_dim) < 0.003).float()
        else:
            self.hard[env_index] = (torch.rand(()) < 0.003).float()

    def reward(self, agent):
        return self.hard * 5 + agent.state.pos[:, 0]


class Lcg(Aged):
    """Whole numbers whose products pass 2^24 after five steps."""

    EXPECT = "eager"

    def make_world(self, batch_dim, device, **kwargs):
        self.h = torch.ones(batch_dim, dtype=torch.long)
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        if env_index is None:
            self.h = torch.ones(self.world.batch_dim, dtype=torch.long)
        else:
            self.h[env_index] = 1

    def post_step(self):
        self.h = self.h * 31 % 1000003

    def reward(self, agent):
        return self.h.float() / 1000003


class LateInt(Aged):
    """A sixth power passes 2^24 at age 16."""

    EXPECT = "eager"

    def reward(self, agent):
        return ((self.age.long() ** 6 + 1) % 7).float()


class Vmapped(Aged):
    """`torch.vmap` over the environments."""

    EXPECT = "kernel"

    def reward(self, agent):
        return torch.vmap(lambda p, a: p.sum() * a)(agent.state.pos, self.age)


class LateList(Aged):
    """A list comprehension over the environments."""

    EXPECT = "eager"

    def reward(self, agent):
        return torch.stack([x * 2 for x in self.age])


class LateIsinstanceShape(Aged):
    """Sizes that cancel."""

    EXPECT = "kernel"

    def reward(self, agent):
        return self.age[: self.age.shape[0]] * self.world.batch_dim / self.world.batch_dim


class LateAccu(Aged):
    """A clock in float64: 0.1 ten times is below 1, and in float32 above."""

    EXPECT = "eager"
    CAUSE = "scenario.acc"

    def make_world(self, batch_dim, device, **kwargs):
        self.acc = torch.zeros(batch_dim, dtype=torch.float64)
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        if env_index is None:
            self.acc = torch.zeros(self.world.batch_dim, dtype=torch.float64)
        else:
            self.acc[env_index] = 0

    def post_step(self):
        self.acc = self.acc + 0.1

    def reward(self, agent):
        return (self.acc % 1.0).float()


class LateBitwise(Aged):
    """Operations on bits."""

    EXPECT = "eager"

    def reward(self, agent):
        a = self.age.long()
        return ((a ^ 5) & 3).float() + (a << 2).float() + (a >> 1).float() + (~a).float()


class LateDiv(Aged):
    """Divisions of negative whole numbers, halves to even."""

    EXPECT = "kernel"

    def reward(self, agent):
        a = self.age.long() - 10
        whole = (a // 3).float() + (a % 4).float()
        return whole + torch.round(self.age / 2) + torch.fmod(-self.age, 3) + torch.remainder(-self.age, 3)


class LateUint8(Aged):
    """uint8 wraps at age 13."""

    EXPECT = "eager"

    def reward(self, agent):
        return (self.age.to(torch.uint8) * 20).float()


class LateInt32Wrap(Aged):
    """int32 wraps at age 11."""

    EXPECT = "eager"

    def reward(self, agent):
        return (self.age.to(torch.int32) * 200_000_000).float() / 1e9


class LateNan(Aged):
    """The root of a negative number, clamped, from age 11."""

    EXPECT = "kernel"

    def reward(self, agent):
        x = torch.sqrt(10 - self.age)
        return x.clamp(min=0.0)


class LateNanMax(Aged):
    """NaN in maximum and nan_to_num."""

    EXPECT = "kernel"

    def reward(self, agent):
        x = torch.sqrt(10 - self.age)
        return torch.maximum(x, self.age) + torch.nan_to_num(x, nan=3.0)


class LateSort(Aged):
    """Ties in argmax, sort and topk."""

    EXPECT = "eager"

    def reward(self, agent):
        x = torch.stack([self.age, flat(agent, 12.0), agent.state.pos[:, 0]], -1)
        return x.argmax(-1).float() + x.sort(-1).indices[:, 1] + x.topk(2, -1).indices[:, 1]


class LateSearch(Aged):
    """`torch.bucketize` of the age."""

    EXPECT = "eager"

    def reward(self, agent):
        return torch.bucketize(self.age, torch.tensor([3.0, 14.0, 20.0])).float()


class LateTable(Aged):
    """A schedule that the age indexes."""

    EXPECT = "kernel"

    def make_world(self, batch_dim, device, **kwargs):
        self.table = torch.linspace(0, 1, 64) ** 2
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return self.table[self.age.long().clamp(max=63)]


class LateShapeBranch(Aged):
    """The mean of a selection, if there is any."""

    EXPECT = "eager"

    def reward(self, agent):
        sel = self.age[self.late()]
        return flat(agent, 0.0) + (sel.mean() if sel.numel() > 0 else 0.0)


class LateShrink(Aged):
    """The step puts old agents back to the middle."""

    EXPECT = "kernel"

    def post_step(self):
        super().post_step()
        self.world.agents[0].state.pos = torch.where(self.late()[:, None], 0.0, self.world.agents[0].state.pos)
