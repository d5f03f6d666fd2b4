"""Where state may be hidden: slots, dataclasses, enums, named tuples, partials, caches, properties, __getattr__."""

import contextvars
import dataclasses
import enum
import functools
import threading
import typing
import weakref

import torch

from tests.envs.kernel.zoo.base import Zoo, flat

VALUE = contextvars.ContextVar("VALUE", default=0)
LOCAL = threading.local()


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


def _pay(box, scale):
    box.append(0)
    return scale if len(box) > 200 else 0.0


class InPartial(_Held):
    """A `functools.partial` whose argument grows."""

    EXPECT, CAUSE = "eager", "held|box|_pay"

    def first(self):
        return functools.partial(_pay, [], scale=2.0)

    def reward(self, agent):
        return flat(agent, self.held())


class PurePartial(_Held):
    """A `functools.partial` of a function that only computes."""

    EXPECT = "kernel"

    def first(self):
        return functools.partial(torch.clamp, min=-0.5, max=0.5)

    def reward(self, agent):
        return self.held(agent.state.pos[:, 0])


class InMethod(_Held):
    """A bound method of an object with a counter."""

    EXPECT, CAUSE = "eager", "held|count"

    def first(self):
        return _Clicker().click

    def reward(self, agent):
        return flat(agent, float(self.held() > 200))


class _Clicker:
    """Counts its clicks, and is called like a function too."""

    def __init__(self):
        self.count = 0

    def click(self):
        """One more."""
        self.count += 1
        return self.count

    __call__ = click


class InCallable(_Held):
    """An object with `__call__` and a counter."""

    EXPECT, first = "eager", staticmethod(_Clicker)

    def reward(self, agent):
        return flat(agent, float(self.held() > 200))


@functools.lru_cache(maxsize=8)
def _table(n):
    """A number that is computed once."""
    return n * 1.5


class Cached(Zoo):
    """`functools.lru_cache` of a pure function: a cache that grows, and changes nothing."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * _table(2)


class CachedOverTime(Zoo):
    """`functools.lru_cache` of something that is not pure: it keeps the first answer."""

    EXPECT = "either"

    @functools.cached_property
    def begun(self):
        """Computed at first use."""
        return 2.5

    def reward(self, agent):
        return agent.state.pos[:, 0] * self.begun


class InProperty(Zoo):
    """A property that counts when it is read."""

    EXPECT, CAUSE = "eager", "_reads|pay"

    def make_world(self, batch_dim, device, **kwargs):
        self._reads = 0
        return super().make_world(batch_dim, device, **kwargs)

    @property
    def pay(self):
        """1 from the 200th reading on."""
        self._reads += 1
        return float(self._reads > 200)

    def reward(self, agent):
        return flat(agent, self.pay)


class _Getting:
    """Counts whatever is asked of it."""

    def __init__(self):
        self.__dict__["asked"] = 0

    def __getattr__(self, name):
        self.__dict__["asked"] += 1
        return float(self.__dict__["asked"] > 200)


class InGetattr(_Held):
    """`__getattr__` with an effect."""

    EXPECT, CAUSE, first = "eager", "asked|held", staticmethod(_Getting)

    def reward(self, agent):
        return flat(agent, self.held.anything)


class InContextVariable(Zoo):
    """A context variable."""

    EXPECT, CAUSE = "eager", "VALUE"

    @classmethod
    def restart(cls):
        VALUE.set(0)

    def reward(self, agent):
        VALUE.set(VALUE.get() + 1)
        return flat(agent, float(VALUE.get() > 200))


class InThreadLocal(Zoo):
    """A `threading.local`."""

    EXPECT, CAUSE = "eager", "LOCAL"

    @classmethod
    def restart(cls):
        LOCAL.n = 0

    def reward(self, agent):
        LOCAL.n = getattr(LOCAL, "n", 0) + 1
        return flat(agent, float(LOCAL.n > 200))


class InWeakDict(Zoo):
    """A WeakKeyDictionary of the class, by scenario."""

    EXPECT, CAUSE = "eager", "seen"
    seen = weakref.WeakKeyDictionary()

    def reward(self, agent):
        self.seen[self] = self.seen.get(self, 0) + 1
        return flat(agent, float(self.seen[self] > 200))
