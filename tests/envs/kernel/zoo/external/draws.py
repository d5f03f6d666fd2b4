"""Draws in a step: the global generators, generators of one's own, seeds set within a step, draws that come late."""

import random

import numpy as np
import torch

from tests.envs.kernel.zoo.base import Zoo, flat

DICE = random.Random(7)


class NumpyGlobal(Zoo):
    """`np.random.rand()` in the reward: its key array changes once in 624 draws only."""

    EXPECT, CAUSE, ALONE = "eager", "numpy|np.random", True

    def reward(self, agent):
        return flat(agent, float(np.random.rand()))


class NumpyGaussian(Zoo):
    """`np.random.randn()`: every other draw comes from the cached Gaussian, with the generator's words unmoved."""

    EXPECT, CAUSE = "eager", "numpy|np.random"

    def make_world(self, batch_dim, device, **kwargs):
        self.drawn = np.random.RandomState(1)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, float(self.drawn.randn()))


class NumpyPerEnvironment(Zoo):
    """`np.random.rand(E)`: noise for each environment, by NumPy."""

    EXPECT, CAUSE = "eager", "numpy|np.random"

    def reward(self, agent):
        return torch.from_numpy(np.random.rand(self.world.batch_dim)).float()


class PythonGlobal(Zoo):
    """`random.random()` in the reward."""

    EXPECT, CAUSE = "eager", "random"

    def reward(self, agent):
        return flat(agent, random.random())


class PythonChoice(Zoo):
    """`random.choice` decides which of two tensor programs runs."""

    EXPECT, CAUSE = "eager", "random"

    def reward(self, agent):
        return agent.state.pos[:, random.choice([0, 1])]


class PythonLate(Zoo):
    """`random.random()` from step 40 of an episode on, by a tensor of steps."""

    EXPECT, CAUSE = "eager", "random"

    def make_world(self, batch_dim, device, **kwargs):
        self.age = torch.zeros(batch_dim, device=device)
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.age[slice(None) if env_index is None else env_index] = 0

    def reward(self, agent):
        self.age += 1
        return flat(agent, random.random()) if (self.age > 40).any() else flat(agent, 0.0)


class PythonAfterCalls(Zoo):
    """`random.random()` after 250 calls, counted in a list."""

    EXPECT = "eager"

    def make_world(self, batch_dim, device, **kwargs):
        self.calls = []
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        self.calls.append(0)
        return flat(agent, random.random() if len(self.calls) > 250 else 0.5)


class OwnRandom(Zoo):
    """A `random.Random` of the instance."""

    EXPECT, CAUSE = "eager", "dice"

    def make_world(self, batch_dim, device, **kwargs):
        self.dice = random.Random(3)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, self.dice.random())


class ModulesRandom(Zoo):
    """A `random.Random` of the module."""

    EXPECT, CAUSE = "eager", "DICE"

    @classmethod
    def restart(cls):
        DICE.seed(7)

    def reward(self, agent):
        return flat(agent, DICE.gauss(0, 1))


class OwnNumpy(Zoo):
    """A `np.random.default_rng` of the instance."""

    EXPECT, CAUSE = "eager", "rng"

    def make_world(self, batch_dim, device, **kwargs):
        self.rng = np.random.default_rng(5)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, float(self.rng.random()))


class NumpyInStep(Zoo):
    """A seeded `default_rng(0)` made anew in each step: always the same number."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * float(np.random.default_rng(0).random())


class UnseededInStep(Zoo):
    """An unseeded `default_rng()` made in each step: the system's entropy."""

    EXPECT, CAUSE, REPEATS = "eager", "default_rng|urandom|entropy", False

    def reward(self, agent):
        return flat(agent, float(np.random.default_rng().random()))


class UnseededPython(Zoo):
    """An unseeded `random.Random()` made in each step."""

    EXPECT, CAUSE, REPEATS = "eager", "Random|urandom|entropy", False

    def reward(self, agent):
        return flat(agent, random.Random().random())


class OwnGenerator(Zoo):
    """A `torch.Generator` of the instance."""

    EXPECT, CAUSE = "eager", "generator"

    def make_world(self, batch_dim, device, **kwargs):
        self.generator = torch.Generator().manual_seed(4)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return torch.rand(self.world.batch_dim, generator=self.generator)


class GeneratorInStep(Zoo):
    """A seeded `torch.Generator` made anew in each step: the same noise for ever."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] + torch.rand(2, generator=torch.Generator().manual_seed(4))[0]


class SeedInStep(Zoo):
    """`torch.manual_seed` in each step, then a draw."""

    EXPECT = "eager"

    def reward(self, agent):
        torch.manual_seed(11)
        return torch.rand(self.world.batch_dim)


class SeedOfPython(Zoo):
    """`random.seed(…)` in each step, then a draw: a constant, but the generator is the environment's."""

    EXPECT = "either"

    def reward(self, agent):
        random.seed(11)
        return agent.state.pos[:, 0] * random.random()


class Noise(Zoo):
    """`torch.randn` for each environment: the environment's own stream."""

    EXPECT = "kernel"

    def observation(self, agent):
        return agent.state.pos + 0.1 * torch.randn_like(agent.state.pos)


class NoiseOfOne(Zoo):
    """One `torch.rand(())` for all environments."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * torch.rand(())


class NoiseUnderIf(Zoo):
    """A draw under `if x.any()`: the stream moves only where somebody is out."""

    EXPECT = "either"

    def reward(self, agent):
        out = agent.state.pos[:, 1].abs() > 1.0
        value = agent.state.pos[:, 0]
        if out.any():
            value = torch.where(out, torch.rand_like(value), value)
        return value


class Permuted(Zoo):
    """`torch.randperm` over the coordinates."""

    EXPECT = "either"

    def observation(self, agent):
        return torch.cat([agent.state.pos, agent.state.vel], -1)[:, torch.randperm(4)]


class Shuffled(Zoo):
    """`random.shuffle` of a list that stays."""

    EXPECT, CAUSE = "eager", "random|order"

    def make_world(self, batch_dim, device, **kwargs):
        self.order = [0, 1, 2, 3]
        return super().make_world(batch_dim, device, **kwargs)

    def observation(self, agent):
        random.shuffle(self.order)
        return torch.cat([agent.state.pos, agent.state.vel], -1)[:, self.order]
