"""Python numbers out of tensors: item, float, int, tolist, equal, NumPy views; of constants and of state."""

import numpy as np
import torch

from tests.envs.kernel.zoo.base import Zoo, flat


class _Table(Zoo):
    """Has a constant tensor `table` and a constant 0-dim tensor `pay`."""

    def make_world(self, batch_dim, device, **kwargs):
        self.table = torch.tensor([0.5, 1.5, 2.5])
        self.pay = torch.tensor(2.0)
        return super().make_world(batch_dim, device, **kwargs)


class ItemOfConstant(_Table):
    """`.item()` of a constant tensor."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * self.pay.item()


class FloatOfConstant(_Table):
    """`float()` of a constant tensor."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * float(self.table[1])


class IntOfConstant(_Table):
    """`int()` of a constant tensor, as an index."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, int(self.pay) - 1]


class TolistOfConstant(_Table):
    """`.tolist()` of a constant tensor."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * sum(self.table.tolist())


class EqualOfConstants(_Table):
    """`torch.equal` of two constant tensors."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * (2.0 if torch.equal(self.table, torch.tensor([0.5, 1.5, 2.5])) else 1.0)


class BranchOnConstant(_Table):
    """`if` on a constant tensor."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] if self.pay > 1 else agent.state.pos[:, 1]


class NumpyOfConstant(_Table):
    """`.numpy()` of a constant tensor."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * float(self.table.numpy().max())


class MadeInStep(Zoo):
    """A tensor made in the step from Python numbers, and read back."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * torch.tensor([1.0, 2.0]).sum().item()


class ItemOfState(Zoo):
    """`.item()` of the batch's mean."""

    EXPECT, ALONE = "eager", True

    def reward(self, agent):
        return flat(agent, agent.state.pos[:, 0].mean().item())


class FloatOfState(Zoo):
    """`float()` of the first environment's place pays all."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, float(agent.state.pos[0, 0]))


class IntOfState(Zoo):
    """`int()` of a count over the batch."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, float(int((agent.state.pos[:, 0] > 0).sum())))


class TolistOfState(Zoo):
    """A list comprehension over `.tolist()`."""

    EXPECT = "eager"

    def reward(self, agent):
        return torch.tensor([abs(x) for x in agent.state.pos[:, 0].tolist()])


class EqualOfState(Zoo):
    """`torch.equal` of state and a constant."""

    EXPECT = "eager"

    def reward(self, agent):
        still = torch.equal(agent.state.vel, torch.zeros_like(agent.state.vel))
        return flat(agent, 1.0 if still else 0.0)


class AllcloseOfState(Zoo):
    """`torch.allclose` decides."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, float(torch.allclose(agent.state.pos, torch.zeros(2), atol=0.9)))


class NumpyOfState(Zoo):
    """The reward is computed by NumPy."""

    EXPECT = "eager"

    def reward(self, agent):
        return torch.from_numpy(np.hypot(*agent.state.pos.numpy().T))


class AsarrayOfState(Zoo):
    """`np.asarray(tensor)` and back by `torch.as_tensor`."""

    EXPECT = "eager"

    def reward(self, agent):
        return torch.as_tensor(np.asarray(agent.state.pos)[:, 0] * 2)


class NumpyWrites(Zoo):
    """NumPy writes into the memory of a tensor of the state."""

    EXPECT = "eager"

    def post_step(self):
        place = self.world.agents[0].state.pos.numpy()
        np.clip(place, -0.9, 0.9, out=place)


class NumpyFunction(Zoo):
    """`np.sin` of a tensor, which NumPy takes without a word."""

    EXPECT = "eager"

    def reward(self, agent):
        return torch.as_tensor(np.sin(agent.state.pos[:, 0]))


class Formatted(Zoo):
    """A tensor's number in a string that is parsed again."""

    EXPECT = "eager"

    def reward(self, agent):
        return flat(agent, float(f"{agent.state.pos[0, 0]:.3f}"))


class LenOfBatch(Zoo):
    """The reward is divided by `len(pos)`: the number of environments."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] / len(agent.state.pos)


class BatchDim(Zoo):
    """The reward is divided by `world.batch_dim`."""

    EXPECT, ALONE = "either", True

    def reward(self, agent):
        return agent.state.pos[:, 0] / self.world.batch_dim


class ShapeOfBatch(Zoo):
    """The observation carries `pos.shape[0]`."""

    EXPECT = "either"

    def observation(self, agent):
        return torch.cat([agent.state.pos, flat(agent, float(agent.state.pos.shape[0]))[:, None]], -1)


class NumelOfBatch(Zoo):
    """The reward is scaled by `1 / numel`, kept from make_world."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.share = 1.0 / batch_dim
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return agent.state.pos[:, 0] * self.share


class SmallBatch(Zoo):
    """`if batch_dim < 100`: another reward in small batches."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] if self.world.batch_dim < 100 else agent.state.pos[:, 1]
