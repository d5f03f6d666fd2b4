"""State of single environments outside of tensors: carried through resets rightly, or refused, on both paths."""

import collections

import numpy as np
import torch

from tests.envs.kernel.zoo.base import Zoo


class _Aged(Zoo):
    """Keeps each environment's age in a tensor, and in `held` as well; their difference is the reward, always 0."""

    EXPECT, REFUSABLE, CAUSE = "", True, "held"

    def first(self, rows):
        """What is held at the beginning."""
        return np.zeros(rows, dtype=np.float32)

    def grow(self):
        """One step older."""
        self.held += 1

    def renew(self, env_index):
        """Age 0."""
        self.held[slice(None) if env_index is None else env_index] = 0

    def read(self):
        """[E]: the ages."""
        return torch.from_numpy(self.held.copy())

    def make_world(self, batch_dim, device, **kwargs):
        self.age, self.held = torch.zeros(batch_dim), self.first(batch_dim)
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.age[slice(None) if env_index is None else env_index] = 0
        self.renew(env_index)

    def post_step(self):
        self.age += 1
        self.grow()

    def observation(self, agent):
        return torch.stack([self.age, self.read()], -1)

    def reward(self, agent):
        return self.age - self.read()

    @classmethod
    def holds(cls, log):
        """Both ages are the same, before and after restarts."""
        seen, final = log["observation"], log["final"]
        return bool((seen[..., 0] == seen[..., 1]).all() and (final[..., 0] == final[..., 1]).all())


class NumpyArray(_Aged):
    """A NumPy array of one number per environment."""

    EXPECT, ALONE = "either", True


class NumpyRebound(_Aged):
    """A NumPy array that each step replaces."""

    EXPECT = "either"

    def grow(self):
        self.held = self.held + 1


class NumpyTable(_Aged):
    """A NumPy array with the environments along its second axis."""

    EXPECT = "either"

    def first(self, rows):
        return np.zeros((2, rows), dtype=np.float32)

    def renew(self, env_index):
        self.held[:, slice(None) if env_index is None else env_index] = 0

    def read(self):
        return torch.from_numpy(self.held[1].copy())


class NumpyBool(_Aged):
    """A NumPy array of truths: whether an environment is in its first five steps."""

    EXPECT = "either"

    def first(self, rows):
        return np.ones(rows, dtype=bool)

    def grow(self):
        self.held[:] = (self.age < 5).numpy()

    def renew(self, env_index):
        self.held[slice(None) if env_index is None else env_index] = True

    def observation(self, agent):
        return torch.stack([(self.age < 5).float(), self.read().float()], -1)

    def reward(self, agent):
        return (self.age < 5).float() - self.read().float()


class NumpyInDict(_Aged):
    """A NumPy array in a dictionary."""

    EXPECT = "either"

    def first(self, rows):
        return {"age": np.zeros(rows, dtype=np.float32)}

    def grow(self):
        self.held["age"] += 1

    def renew(self, env_index):
        self.held["age"][slice(None) if env_index is None else env_index] = 0

    def read(self):
        return torch.from_numpy(self.held["age"].copy())


class ListOfNumbers(_Aged):
    """A Python list of one number per environment."""

    EXPECT = "either"

    def first(self, rows):
        return [0.0] * rows

    def grow(self):
        self.held = [age + 1 for age in self.held]

    def renew(self, env_index):
        for i in range(self.world.batch_dim) if env_index is None else [env_index]:
            self.held[i] = 0.0

    def read(self):
        return torch.tensor(self.held)


class ListInPlace(ListOfNumbers):
    """A Python list whose entries change in place."""

    EXPECT = "either"

    def grow(self):
        for i in range(len(self.held)):
            self.held[i] += 1


class ListOfTensors(ListOfNumbers):
    """A Python list of one 0-dim tensor per environment."""

    EXPECT = "either"

    def first(self, rows):
        return [torch.zeros(()) for _ in range(rows)]

    def grow(self):
        for age in self.held:
            age += 1

    def renew(self, env_index):
        for i in range(self.world.batch_dim) if env_index is None else [env_index]:
            self.held[i] = torch.zeros(())

    def read(self):
        return torch.stack(self.held)


class ListOfRows(ListOfTensors):
    """A Python list of one vector per environment, bound anew at every step."""

    EXPECT = "either"

    def first(self, rows):
        return [torch.zeros(2) for _ in range(rows)]

    def grow(self):
        self.held = [age + 1 for age in self.held]

    def renew(self, env_index):
        for i in range(self.world.batch_dim) if env_index is None else [env_index]:
            self.held[i] = torch.zeros(2)

    def read(self):
        return torch.stack(self.held)[:, 1]


class DictByNumber(ListOfNumbers):
    """A dictionary {number of the environment: age}."""

    EXPECT = "either"

    def first(self, rows):
        return dict.fromkeys(range(rows), 0.0)

    def grow(self):
        for i in self.held:
            self.held[i] += 1

    def read(self):
        return torch.tensor([self.held[i] for i in range(self.world.batch_dim)])


class ListOfDeques(_Aged):
    """A deque of past places for each environment, of different lengths."""

    EXPECT = "error"

    def first(self, rows):
        return [collections.deque(maxlen=1000) for _ in range(rows)]

    def grow(self):
        for past in self.held:
            past.append(0.0)

    def renew(self, env_index):
        for i in range(self.world.batch_dim) if env_index is None else [env_index]:
            self.held[i].clear()

    def read(self):
        return torch.tensor([float(len(past)) for past in self.held])


class _Memory:
    """An environment's own object."""

    def __init__(self):
        self.age = 0


class ListOfObjects(ListOfNumbers):
    """An object of the user's own class for each environment."""

    EXPECT = "error"

    def first(self, rows):
        return [_Memory() for _ in range(rows)]

    def grow(self):
        for memory in self.held:
            memory.age += 1

    def renew(self, env_index):
        for i in range(self.world.batch_dim) if env_index is None else [env_index]:
            self.held[i] = _Memory()

    def read(self):
        return torch.tensor([float(memory.age) for memory in self.held])


class SetOfEnvironments(_Aged):
    """The set of those environments that are older than five steps: nothing about it tells that it is per environment.

    docs/guides/extending.md says to keep such state in a tensor; both paths carry it on through resets.
    """

    EXPECT, UNSEEN = "either", True

    def first(self, rows):
        return set()

    def grow(self):
        self.held.update(i for i in range(self.world.batch_dim) if self.age[i] > 5)

    def renew(self, env_index):
        if env_index is None:
            self.held.clear()
        self.held.discard(env_index)

    def observation(self, agent):
        old = torch.tensor([float(i in self.held) for i in range(self.world.batch_dim)])
        return torch.stack([(self.age > 5).float(), old], -1)

    def reward(self, agent):
        return torch.zeros_like(self.age)
