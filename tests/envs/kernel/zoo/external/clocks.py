"""Scenarios that ask the clock or the system's entropy: no two runs are alike, and no trace can hold them."""

import datetime
import os
import secrets
import time
import uuid
from random import SystemRandom
from time import perf_counter

from tests.envs.kernel.zoo.base import Zoo, flat

START = time.time()


class _Clock(Zoo):
    """Expected to be eager; compared with nothing."""

    REPEATS = False


class WallClock(_Clock):
    """`time.time()` in the reward."""

    EXPECT, CAUSE = "eager", r"time"

    def reward(self, agent):
        return flat(agent, time.time() - START)


class PerfCounter(_Clock):
    """`perf_counter()`, imported by name."""

    EXPECT, CAUSE = "eager", "perf_counter"

    def reward(self, agent):
        return flat(agent, perf_counter() % 10)


class Monotonic(_Clock):
    """`time.monotonic_ns()` decides a branch."""

    EXPECT, CAUSE = "eager", "monotonic"

    def reward(self, agent):
        return flat(agent, 1.0 if time.monotonic_ns() % 2 else 0.0)


class Today(_Clock):
    """`datetime.datetime.now()`."""

    EXPECT, CAUSE = "eager", "datetime|now"

    def reward(self, agent):
        return flat(agent, datetime.datetime.now().microsecond / 1e6)


class Deadline(_Clock):
    """A clock kept from the making of the world: effects begin after some wall-clock time."""

    EXPECT, CAUSE = "eager", r"time"

    def make_world(self, batch_dim, device, **kwargs):
        self.begun = time.time()
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, 1.0 if time.time() - self.begun > 5.0 else 0.0)


class SystemBytes(_Clock):
    """`os.urandom` in the observation."""

    EXPECT, CAUSE = "eager", "urandom"

    def observation(self, agent):
        return agent.state.pos + os.urandom(1)[0] / 255


class Uuids(_Clock):
    """`uuid.uuid4()` in the reward."""

    EXPECT, CAUSE = "eager", "uuid|urandom"

    def reward(self, agent):
        return flat(agent, uuid.uuid4().int % 100 / 100)


class Secrets(_Clock):
    """`secrets.randbelow` in the reward."""

    EXPECT, CAUSE = "eager", "secrets|randbelow|urandom"

    def reward(self, agent):
        return flat(agent, secrets.randbelow(100) / 100)


class Systems(_Clock):
    """`random.SystemRandom` in the reward."""

    EXPECT, CAUSE = "eager", "SystemRandom|random|urandom"

    def make_world(self, batch_dim, device, **kwargs):
        self.dice = SystemRandom()
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, self.dice.random())


class Stopwatch(Zoo):
    """Measures its own step for a log that nothing reads."""

    EXPECT = "either"

    def reward(self, agent):
        begun = time.perf_counter()
        value = agent.state.pos[:, 0] * 2
        self.took = time.perf_counter() - begun
        return value
