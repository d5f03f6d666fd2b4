"""Things that happen late or seldom: after a trace, its verification and the start have seen nothing of them."""

import torch

from tests.envs.kernel.zoo.base import Zoo, flat

STORE = torch.zeros(1)


class Aged(Zoo):
    """Each environment's age in a tensor."""

    def make_world(self, batch_dim, device, **kwargs):
        self.age = torch.zeros(batch_dim, device=device)
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        if env_index is None:
            self.age = torch.zeros(self.world.batch_dim)
        else:
            self.age[env_index] = 0.0

    def post_step(self):
        self.age = self.age + 1

    def late(self):
        return self.age > 15


class LateAll(Aged):
    """`if late.all():` before a masked write: one environment that is late is not all."""

    EXPECT = "eager"

    def reward(self, agent):
        r = flat(agent, 0.0)
        if self.late().all():
            r = torch.where(self.late(), 1.0, r)
        return r


class LateMin(Aged):
    """`if age.min() > 10:` before a masked write."""

    EXPECT = "eager"

    def reward(self, agent):
        r = flat(agent, 0.0)
        if self.age.min() > 10:
            r = torch.where(self.late(), 1.0, r)
        return r


class LateFirst(Aged):
    """`if late[0]:` before a masked write."""

    EXPECT = "eager"

    def reward(self, agent):
        r = flat(agent, 0.0)
        if self.late()[0]:
            r = torch.where(self.late(), 1.0, r)
        return r


class LateMean(Aged):
    """`if late.mean() > 0.5:` before a masked write."""

    EXPECT = "eager"

    def reward(self, agent):
        r = flat(agent, 0.0)
        if self.late().float().mean() > 0.5:
            r = torch.where(self.late(), 1.0, r)
        return r


class LateAnd(Aged):
    """A masked write late in an episode, under a condition on something else."""

    EXPECT = "eager"

    def reward(self, agent):
        r = flat(agent, 0.0)
        if (agent.state.pos[:, 0] > 0.5).any():
            r = torch.where(self.late(), 1.0, r)
        return r


class LateUnmasked(Aged):
    """`if late.any():` pays everyone."""

    EXPECT = "eager"

    def reward(self, agent):
        r = flat(agent, 0.0)
        if self.late().any():
            r = r + 1.0
        return r


class LateNonzeroLoop(Aged):
    """A loop over `nonzero`, which is empty at first."""

    EXPECT = "eager"

    def reward(self, agent):
        r = flat(agent, 0.0)
        for i in self.late().nonzero():
            r[i] = 1.0
        return r


class LateArgwhere(Aged):
    """`len(torch.argwhere(late))`, zero at first."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, float(len(torch.argwhere(self.late()))))


class LateMaskedSelect(Aged):
    """The length of `masked_select`, zero at first."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, float(self.age.masked_select(self.late()).numel()))


class LateUniqueC(Aged):
    """The length of `unique_consecutive`."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, float(torch.unique_consecutive(self.late()).numel()))


class LateBincount(Aged):
    """The length of `bincount`."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, float(torch.bincount(self.late().long()).numel()))


class LateWhere1(Aged):
    """`nonzero(as_tuple=True)`."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, float(len(self.late().nonzero(as_tuple=True)[0])))


class LateFlag(Aged):
    """A flag of all environments that is set late, and read a step later."""

    EXPECT = "eager"

    def make_world(self, batch_dim, device, **kwargs):
        self.flag = torch.zeros((), dtype=torch.bool)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return torch.where(self.flag, 1.0, flat(agent, 0.0))

    def post_step(self):
        super().post_step()
        self.flag = self.flag | self.late().any()


class LateFlagInplace(Aged):
    """The same, written in place."""

    EXPECT = "eager"

    def make_world(self, batch_dim, device, **kwargs):
        self.flag = torch.zeros(1)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, 0.0) + self.flag

    def post_step(self):
        super().post_step()
        self.flag += self.late().any()


class LateGlobal(Aged):
    """The same in a module's variable."""

    EXPECT = "eager"

    @classmethod
    def restart(cls):
        STORE.zero_()

    def reward(self, agent):
        return flat(agent, 0.0) + STORE

    def post_step(self):
        super().post_step()
        STORE.copy_(torch.maximum(STORE, self.late().any().float()))


class LateClassTensor(Aged):
    """The same on the class."""

    EXPECT = "eager"

    BUF = torch.zeros(1)

    @classmethod
    def restart(cls):
        cls.BUF = torch.zeros(1)

    def reward(self, agent):
        return flat(agent, 0.0) + type(self).BUF

    def post_step(self):
        super().post_step()
        type(self).BUF = torch.maximum(type(self).BUF, self.late().any().float())


class LateClosure(Aged):
    """A tensor per environment in a closure, written late."""

    EXPECT = "eager"

    def make_world(self, batch_dim, device, **kwargs):
        box = torch.zeros(batch_dim)

        def note(mask):
            box[mask] = 1.0
            return box

        self.note = note
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return self.note(self.late()).clone()
