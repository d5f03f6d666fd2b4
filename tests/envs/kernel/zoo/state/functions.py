"""State behind what is called or asked: partials, methods, caches, properties, __getattr__, context variables."""

import contextvars
import functools
import threading
import weakref

import torch

from tests.envs.kernel.zoo.base import Zoo, flat
from tests.envs.kernel.zoo.state.holders import _Held

VALUE = contextvars.ContextVar("VALUE", default=0)
LOCAL = threading.local()


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
