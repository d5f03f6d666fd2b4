"""Where state may be held: slots, dataclasses, enums, named tuples."""

import dataclasses
import enum
import typing

import torch

from tests.envs.kernel.zoo.base import Zoo, flat


class _Held(Zoo):
    """Has `held` from its making on."""

    CAUSE = "held"

    def first(self):
        """What is held at the beginning."""

    def make_world(self, batch_dim, device, **kwargs):
        self.held = self.first()
        return super().make_world(batch_dim, device, **kwargs)


class _Slots:
    """A counter in a slot: no `__dict__` to walk."""

    __slots__ = ("n",)

    def __init__(self):
        self.n = 0


class InSlots(_Held):
    """State in `__slots__`."""

    EXPECT, first = "eager", staticmethod(_Slots)

    def reward(self, agent):
        self.held.n += 1
        return flat(agent, float(self.held.n > 200))


class _SlotsOfTensors:
    """A tensor of each environment in a slot."""

    __slots__ = ("total",)

    def __init__(self, rows):
        self.total = torch.zeros(rows)


class TensorInSlots(_Held):
    """A tensor of each environment in `__slots__`: carried rightly, or refused."""

    EXPECT, REFUSABLE = "either", True

    def make_world(self, batch_dim, device, **kwargs):
        self.held, self.twice = _SlotsOfTensors(batch_dim), torch.zeros(batch_dim)
        return Zoo.make_world(self, batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        rows = slice(None) if env_index is None else env_index
        self.held.total[rows], self.twice[rows] = 0, 0

    def reward(self, agent):
        self.held.total += 1
        self.twice += 1
        return self.held.total - self.twice

    @classmethod
    def holds(cls, log):
        """The two are the same at all times."""
        return bool((log["reward"] == 0).all())


@dataclasses.dataclass
class _Data:
    """A plain dataclass."""

    n: int = 0


class InDataclass(_Held):
    """State in a dataclass."""

    EXPECT, first = "eager", staticmethod(_Data)

    def reward(self, agent):
        self.held.n += 1
        return flat(agent, float(self.held.n > 200))


class ReplacedDataclass(_Held):
    """A frozen value that each step replaces by `dataclasses.replace`."""

    EXPECT, first = "eager", staticmethod(_Data)

    def reward(self, agent):
        self.held = dataclasses.replace(self.held, n=self.held.n + 1)
        return flat(agent, float(self.held.n > 200))


class _Mode(enum.Enum):
    """Two modes."""

    EARLY = 0
    LATE = 1


class InEnum(_Held):
    """A mode that changes after 200 steps, by a counter."""

    EXPECT = "eager"

    def first(self):
        return _Mode.EARLY

    def pre_step(self):
        self.age = getattr(self, "age", 0) + 1
        if self.age > 200:
            self.held = _Mode.LATE

    def reward(self, agent):
        return agent.state.pos[:, 0] if self.held is _Mode.EARLY else agent.state.pos[:, 1]


class EnumConstant(_Held):
    """A mode that never changes."""

    EXPECT = "kernel"

    def first(self):
        return _Mode.LATE

    def reward(self, agent):
        return agent.state.pos[:, 0] if self.held is _Mode.EARLY else agent.state.pos[:, 1]


class _Pair(typing.NamedTuple):
    """A named tuple of state."""

    n: int
    pay: float


class InNamedTuple(_Held):
    """A named tuple that each step replaces."""

    EXPECT = "eager"

    def first(self):
        return _Pair(0, 1.0)

    def reward(self, agent):
        self.held = self.held._replace(n=self.held.n + 1, pay=self.held.pay * 0.99)
        return agent.state.pos[:, 0] * self.held.pay
