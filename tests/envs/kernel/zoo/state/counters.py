"""Counters that Python keeps: on the instance, the class, the module, in closures, iterators, functions."""

import itertools

import torch

from tests.envs.kernel.zoo.base import Zoo, flat

MODULE_CALLS = 0
BOX = {"calls": 0}
TICKS = itertools.count()


def _ticks():
    n = 0
    while True:
        yield n
        n += 1


STREAM = _ticks()


def counted():
    """Counts its calls on itself."""
    counted.calls += 1
    return counted.calls


counted.calls = 0


def remember(history=[]):  # noqa: B006 - what a default argument keeps is the point
    """Grows its default argument."""
    history.append(1)
    return len(history)


class OnInstance(Zoo):
    """The reward begins after 200 calls, counted on the instance."""

    EXPECT, CAUSE, ALONE = "eager", "calls", True

    def make_world(self, batch_dim, device, **kwargs):
        self.calls = 0
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        self.calls += 1
        return flat(agent, 1.0 if self.calls > 200 else 0.0)


class AtOnce(OnInstance):
    """The reward is the number of calls itself."""

    def reward(self, agent):
        self.calls += 1
        return flat(agent, float(self.calls))


class Periodic(OnInstance):
    """The reward changes its sign every seventh step."""

    def reward(self, agent):
        self.calls += 1
        return agent.state.pos[:, 0] * (1.0 if self.calls % 14 < 7 else -1.0)


class OnClass(Zoo):
    """The counter stands on the class, so all instances share it."""

    EXPECT, CAUSE = "eager", "calls"
    calls = 0

    @classmethod
    def restart(cls):
        OnClass.calls = 0

    def reward(self, agent):
        OnClass.calls += 1
        return flat(agent, 1.0 if OnClass.calls > 250 else 0.0)


class OnType(Zoo):
    """The counter is written by `type(self)`."""

    EXPECT, CAUSE = "eager", "calls"
    calls = 0

    @classmethod
    def restart(cls):
        cls.calls = 0

    def reward(self, agent):
        type(self).calls += 1
        return flat(agent, float(type(self).calls // 100))


class Family(Zoo):
    """The counter stands on a class that another scenario of this process counts up too."""

    EXPECT, CAUSE = "eager", "calls"

    @classmethod
    def restart(cls):
        OnClass.calls = 0

    def reward(self, agent):
        OnClass.calls += 1
        return agent.state.pos[:, 0] * (OnClass.calls // 120)


class InModule(Zoo):
    """A module variable that the step counts up by `global`."""

    EXPECT, CAUSE = "eager", "MODULE_CALLS"

    @classmethod
    def restart(cls):
        global MODULE_CALLS
        MODULE_CALLS = 0

    def reward(self, agent):
        global MODULE_CALLS
        MODULE_CALLS += 1
        return flat(agent, 1.0 if MODULE_CALLS > 300 else 0.0)


class InModuleBox(Zoo):
    """A module's dictionary that the step counts up."""

    EXPECT, CAUSE = "eager", "BOX"

    @classmethod
    def restart(cls):
        BOX["calls"] = 0

    def observation(self, agent):
        BOX["calls"] += 1
        late = 1.0 if BOX["calls"] > 220 else 0.0
        return torch.cat([agent.state.pos, agent.state.pos[:, :1] * late], -1)


class ByGlobals(Zoo):
    """A module variable that is written by `globals()`."""

    EXPECT, CAUSE = "eager", "MODULE_CALLS"

    @classmethod
    def restart(cls):
        globals()["MODULE_CALLS"] = 0

    def reward(self, agent):
        globals()["MODULE_CALLS"] += 1
        return flat(agent, 1.0 if globals()["MODULE_CALLS"] > 240 else 0.0)


class InClosure(Zoo):
    """A counter that only a closure holds."""

    EXPECT, CAUSE = "eager", "count|tick"

    def make_world(self, batch_dim, device, **kwargs):
        n = 0

        def count():
            nonlocal n
            n += 1
            return n

        self.count = count
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, 1.0 if self.count() > 200 else 0.0)


class FromItertools(Zoo):
    """`next(itertools.count())` on the instance."""

    EXPECT, CAUSE = "eager", "ticks"

    def make_world(self, batch_dim, device, **kwargs):
        self.ticks = itertools.count()
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, 1.0 if next(self.ticks) > 200 else 0.0)


class FromItertoolsInModule(Zoo):
    """`next(itertools.count())` of the module."""

    EXPECT, CAUSE = "eager", "TICKS"

    @classmethod
    def restart(cls):
        global TICKS
        TICKS = itertools.count()

    def reward(self, agent):
        return flat(agent, 0.01 * next(TICKS))


class FromCycle(Zoo):
    """`next(itertools.cycle(…))`: the reward follows a pattern."""

    EXPECT, CAUSE = "eager", "pattern"

    def make_world(self, batch_dim, device, **kwargs):
        self.pattern = itertools.cycle([0.0] * 60 + [1.0] * 60)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, next(self.pattern))


class FromGenerator(Zoo):
    """A generator object of the instance."""

    EXPECT, CAUSE = "eager", "stream"

    def make_world(self, batch_dim, device, **kwargs):
        self.stream = _ticks()
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, 1.0 if next(self.stream) > 200 else 0.0)


class FromGeneratorInModule(Zoo):
    """A generator object of the module."""

    EXPECT, CAUSE = "eager", "STREAM"

    @classmethod
    def restart(cls):
        global STREAM
        STREAM = _ticks()

    def reward(self, agent):
        return flat(agent, 0.01 * next(STREAM))


class OnFunction(Zoo):
    """A counter that is an attribute of a function."""

    EXPECT, CAUSE = "eager", "calls|counted"

    @classmethod
    def restart(cls):
        counted.calls = 0

    def reward(self, agent):
        return flat(agent, 1.0 if counted() > 230 else 0.0)


class InDefaultArgument(Zoo):
    """A counter that is a function's default argument."""

    EXPECT, CAUSE = "eager", "remember|history"

    @classmethod
    def restart(cls):
        remember.__defaults__[0].clear()

    def reward(self, agent):
        return flat(agent, 1.0 if remember() > 230 else 0.0)


class InOwnDefault(Zoo):
    """A counter that is a default argument of the scenario's own method."""

    EXPECT, CAUSE = "eager", "pay|counts"

    @classmethod
    def restart(cls):
        cls.pay.__defaults__[0][0] = 0

    def pay(self, counts=[0]):  # noqa: B006 - what a default argument keeps is the point
        counts[0] += 1
        return counts[0]

    def reward(self, agent):
        return flat(agent, 0.01 * self.pay())
