"""Tensors that all environments share: counted up in place or bound anew, read by arithmetic or by an `if`."""

import torch

from tests.envs.kernel.zoo.base import Zoo, flat


class _Shared(Zoo):
    """Has a 0-dim tensor `t`."""

    CAUSE = r"\bt\b|shared|share"

    def make_world(self, batch_dim, device, **kwargs):
        self.t = torch.zeros(())
        return super().make_world(batch_dim, device, **kwargs)


class InPlace(_Shared):
    """`self.t += 1`, and the reward is t."""

    EXPECT = "eager"

    def reward(self, agent):
        self.t += 1
        return agent.state.pos[:, 0] * 0 + self.t


class Rebound(_Shared):
    """`self.t = self.t + 1`, and the reward is t."""

    EXPECT = "eager"

    def reward(self, agent):
        self.t = self.t + 1
        return agent.state.pos[:, 0] * 0 + self.t


class LateInPlace(_Shared):
    """`torch.where(t > 200, …)`."""

    EXPECT = "eager"

    def reward(self, agent):
        self.t += 1
        return torch.where(self.t > 200, agent.state.pos[:, 0], agent.state.pos[:, 1])


class InIf(_Shared):
    """`if self.t > 200`."""

    EXPECT, ALONE = "eager", True

    def reward(self, agent):
        self.t += 1
        return flat(agent, 1.0) if self.t > 200 else flat(agent, 0.0)


class InIfRebound(_Shared):
    """`if self.t % 100 == 0` on a tensor that is bound anew."""

    EXPECT = "eager"

    def reward(self, agent):
        self.t = self.t + 1
        return flat(agent, 1.0 if self.t % 100 == 0 else 0.0)


class ItemOfShared(_Shared):
    """`self.t.item()` of a tensor counted up."""

    EXPECT = "eager"

    def reward(self, agent):
        self.t += 1
        return flat(agent, 0.01 * self.t.item())


class Unread(_Shared):
    """A shared tensor is counted up and nothing reads it."""

    EXPECT = "either"

    def reward(self, agent):
        self.t += 1
        return agent.state.pos[:, 0]


class RunningMean(_Shared):
    """A running mean of the batch, which normalises the reward."""

    EXPECT = "eager"

    def reward(self, agent):
        self.t = 0.99 * self.t + 0.01 * agent.state.pos[:, 0].mean()
        return agent.state.pos[:, 0] - self.t


class RunningMax(_Shared):
    """The largest distance that any environment has ever had."""

    EXPECT = "eager"

    def reward(self, agent):
        self.t = torch.maximum(self.t, agent.state.pos.norm(dim=-1).max())
        return agent.state.pos[:, 0] - self.t


class Histogram(Zoo):
    """A table of visits that all environments share, counted by index_add_."""

    EXPECT, CAUSE = "eager", "visits|share"

    def make_world(self, batch_dim, device, **kwargs):
        self.visits = torch.zeros(4)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        cell = (agent.state.pos > 0).long() @ torch.tensor([1, 2])
        self.visits.index_add_(0, cell, torch.ones(self.world.batch_dim))
        return 1 / self.visits[cell].clamp(min=1)


class OfModule(Zoo):
    """A module's tensor that a step counts up in place."""

    EXPECT, CAUSE = "eager", "COUNT"

    @classmethod
    def restart(cls):
        COUNT.zero_()

    def reward(self, agent):
        COUNT.add_(1)
        return agent.state.pos[:, 0] + (COUNT > 200)


class OfClass(Zoo):
    """A tensor on the class that a step binds anew."""

    EXPECT, CAUSE = "eager", "seen"
    seen = torch.zeros(())

    @classmethod
    def restart(cls):
        OfClass.seen = torch.zeros(())

    def reward(self, agent):
        OfClass.seen = OfClass.seen + 1
        return agent.state.pos[:, 0] + OfClass.seen


class OfClosure(Zoo):
    """A tensor that only a closure holds, changed in place."""

    EXPECT = "eager"

    def make_world(self, batch_dim, device, **kwargs):
        held = torch.zeros(())

        def count():
            return held.add_(1)

        self.count = count
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos[:, 0] + (self.count() > 200)


class PerEnvironmentInClosure(Zoo):
    """State of each environment in a closure: no walk finds it, so resets can't restart it."""

    EXPECT = "eager"

    def make_world(self, batch_dim, device, **kwargs):
        held = torch.zeros(batch_dim)

        def count():
            return held.add_(1)

        self.count = count
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return 0.01 * self.count()


class Constant(Zoo):
    """A module's tensor that nobody changes."""

    EXPECT = "kernel"

    def reward(self, agent):
        return agent.state.pos @ WEIGHTS


class Buffered(Zoo):
    """A scratch tensor of each environment that every step fills before it reads it."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.scratch = torch.zeros(batch_dim, 2)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        torch.mul(agent.state.pos, 2.0, out=self.scratch)
        return self.scratch.sum(-1)


COUNT = torch.zeros(())
WEIGHTS = torch.tensor([0.25, -1.5])
