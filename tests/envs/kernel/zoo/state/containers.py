"""Python containers and numbers that a step changes: lists, sets, dicts, deques, arrays, floats, strings."""

import array
import collections

import numpy as np
import torch

from tests.envs.kernel.zoo.base import Zoo, flat


class _Holding(Zoo):
    """Has `held` from its making on; subclasses say what, and what a step does to it."""

    def first(self):
        """What is held at the beginning."""

    def make_world(self, batch_dim, device, **kwargs):
        self.held = self.first()
        return super().make_world(batch_dim, device, **kwargs)


class GrowingList(_Holding):
    """A list that grows by one entry a step."""

    EXPECT, CAUSE = "eager", "held"
    first = list

    def reward(self, agent):
        self.held.append(0.0)
        return flat(agent, 1.0 if len(self.held) > 200 else 0.0)


class BoundedList(_Holding):
    """A list that always has ten entries: the oldest goes."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return [0.0] * 10

    def reward(self, agent):
        self.held.append(self.held[-1] + 1.0)
        self.held.pop(0)
        return flat(agent, self.held[0])


class GrowingSet(_Holding):
    """A set that grows for 200 steps."""

    EXPECT, CAUSE = "eager", "held"
    first = set

    def reward(self, agent):
        self.held.add(min(len(self.held), 200))
        return flat(agent, float(len(self.held) > 200))


class GrowingDict(_Holding):
    """A dictionary whose count grows under one key."""

    EXPECT, CAUSE = "eager", "held"
    first = dict

    def reward(self, agent):
        self.held[agent.name] = self.held.get(agent.name, 0) + 1
        return flat(agent, float(self.held[agent.name] > 200))


class DictOfObjects(_Holding):
    """A dictionary whose keys are agents."""

    EXPECT, CAUSE = "eager", "held"
    first = dict

    def reward(self, agent):
        self.held[agent] = self.held.get(agent, 0) + 1
        return flat(agent, float(self.held[agent] // 50))


class Tallied(_Holding):
    """A collections.Counter."""

    EXPECT, CAUSE = "eager", "held"
    first = collections.Counter

    def reward(self, agent):
        self.held[agent.name] += 1
        return flat(agent, float(self.held.total() > 200))


class InDefaultdict(_Holding):
    """A collections.defaultdict of lists."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return collections.defaultdict(list)

    def reward(self, agent):
        self.held[agent.name].append(1)
        return flat(agent, float(len(self.held[agent.name]) > 200))


class InDeque(_Holding):
    """A deque of the last 30 numbers of calls."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return collections.deque([0], maxlen=30)

    def reward(self, agent):
        self.held.append(self.held[-1] + 1)
        return flat(agent, float(self.held[0]))


class Delayed(_Holding):
    """Observes where the agent was three steps before: a deque of tensors, never emptied."""

    EXPECT, CAUSE = "either", "held"
    REFUSABLE = True

    def first(self):
        return collections.deque(maxlen=3)

    def observation(self, agent):
        while len(self.held) < 3:
            self.held.append(torch.zeros_like(agent.state.pos))
        self.held.append(agent.state.pos.clone())
        return torch.cat([agent.state.pos, self.held[0]], -1)


class InNumpy(_Holding):
    """A NumPy array counted up in place."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return np.zeros(3)

    def reward(self, agent):
        self.held[1] += 1
        return flat(agent, float(self.held[1] > 200))


class InNumpyBuffer(_Holding):
    """A NumPy array used as a ring: one entry in ten changes per step."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return np.zeros(10, dtype=np.int64)

    def reward(self, agent):
        self.held[int(self.held.sum()) % 10] += 1
        return flat(agent, float(self.held[7]))


class NumpyScalar(_Holding):
    """A NumPy number that is bound anew each step."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return np.float32(0)

    def reward(self, agent):
        self.held = self.held + np.float32(0.5)
        return flat(agent, float(self.held))


class NumpyIntoTensor(_Holding):
    """A NumPy array that the step changes and then turns into a tensor."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return np.linspace(0.0, 1.0, 2, dtype=np.float32)

    def observation(self, agent):
        self.held *= np.float32(0.99)
        return torch.cat([agent.state.pos, agent.state.pos * torch.from_numpy(self.held)], -1)


class InArray(_Holding):
    """An array.array, which no walk over tensors, lists or NumPy sees."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return array.array("l", [0])

    def reward(self, agent):
        self.held[0] += 1
        return flat(agent, float(self.held[0] > 200))


class InBytes(_Holding):
    """A bytearray that a step writes to."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return bytearray(2)

    def reward(self, agent):
        count = int.from_bytes(self.held, "little") + 1
        self.held[:] = count.to_bytes(2, "little")
        return flat(agent, float(count > 200))


class Decaying(_Holding):
    """A Python float that shrinks with every step: a shaping term that fades."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return 1.0

    def reward(self, agent):
        self.held *= 0.999
        return agent.state.pos[:, 0] * self.held


class DecayingLate(_Holding):
    """A Python float that is halved every 128 steps, and is otherwise left alone."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return (0, 1.0)

    def reward(self, agent):
        n, scale = self.held
        self.held = (n + 1, scale / 2 if n and n % 128 == 0 else scale)
        return agent.state.pos[:, 0] * self.held[1]


class InString(_Holding):
    """A string that grows."""

    EXPECT, CAUSE = "eager", "held"
    first = str

    def reward(self, agent):
        self.held += "."
        return flat(agent, float(len(self.held) > 200))


class Nested(_Holding):
    """A number four containers deep."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return {"a": [({"b": [0]},)]}

    def reward(self, agent):
        self.held["a"][0][0]["b"][0] += 1
        return flat(agent, float(self.held["a"][0][0]["b"][0] > 200))


class Emptied(_Holding):
    """A list of tasks from which a step takes one until none is left."""

    EXPECT, CAUSE = "eager", "held"

    def first(self):
        return [1.0] * 220

    def reward(self, agent):
        return flat(agent, self.held.pop() if self.held else 0.0)
