"""State in raw memory: arrays of Python's own, bytes, structures of C."""

import array
import ctypes

from tests.envs.kernel.zoo.base import Zoo, flat

LONG = array.array("d", [0.0] * 2000)


class _Sample(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int)]


class LongArray(Zoo):
    """A counter far back in an `array.array` of the module."""

    EXPECT = "eager"

    @classmethod
    def restart(cls):
        LONG[-1] = 0.0

    def reward(self, agent):
        LONG[-1] += 1
        return flat(agent, float(LONG[-1] > 200))


class Bytes(Zoo):
    """A counter at the end of a long bytearray."""

    EXPECT = "eager"

    def make_world(self, batch_dim, device, **kwargs):
        self.held = bytearray(3000)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        self.held[-1] = min(self.held[-1] + 1, 250)
        return flat(agent, float(self.held[-1] > 200))


class Structure(Zoo):
    """A counter in a structure of ctypes."""

    EXPECT = "eager"

    def make_world(self, batch_dim, device, **kwargs):
        self.held = _Sample()
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        self.held.count += 1
        return flat(agent, float(self.held.count > 200))
