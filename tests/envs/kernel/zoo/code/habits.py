"""Habits of users that change nothing: caches filled once, logs, printing, warnings, type checks, lazy imports."""

import logging
import os
import warnings

import torch

from tests.envs.kernel.zoo.base import Zoo

logger = logging.getLogger(__name__)


class LazyImport(Zoo):
    """An import within the step."""

    EXPECT = "either"

    def reward(self, agent):
        import colorsys

        return agent.state.pos[:, 0] * colorsys.rgb_to_hsv(0.5, 0.25, 0.25)[1]


class Logs(Zoo):
    """Logs in every step."""

    EXPECT = "either"

    def reward(self, agent):
        logger.debug("a step of %s", agent.name)
        return agent.state.pos[:, 0]


class Warns(Zoo):
    """Warns in every step; Python shows it once."""

    EXPECT = "either"

    def reward(self, agent):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.warn("an old reward", stacklevel=1)
        return agent.state.pos[:, 0]


class Checks(Zoo):
    """isinstance, hasattr, getattr with a default."""

    EXPECT = "either"

    def reward(self, agent):
        scale = getattr(self, "nothing", 1.5) if isinstance(agent.state.pos, torch.Tensor) else 0.0
        return agent.state.pos[:, 0] * (scale if hasattr(agent, "state") else 0.0)


class Notes(Zoo):
    """Keeps its latest reward tensor for the user to look at."""

    EXPECT = "either"

    def reward(self, agent):
        self.latest = {agent.name: agent.state.pos[:, 0].abs()}
        return self.latest[agent.name]


class Exists(Zoo):
    """Asks whether a file exists."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0] * (2.0 if os.path.exists("/nowhere/at/all") else 1.0)


class OnceFilled(Zoo):
    """A dictionary that the first steps fill: constants by name."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.known = {}
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        if agent.name not in self.known:
            self.known[agent.name] = 0.5 * (1 + len(self.known))
        return agent.state.pos[:, 0] * self.known[agent.name]


class Device(Zoo):
    """Tensors made with device=self.world.device, as VMAS's guide asks."""

    EXPECT = "kernel"

    def reward(self, agent):
        return agent.state.pos @ torch.tensor([1.0, 2.0], device=self.world.device)


class FullFrozen(Zoo):
    """A counter that stops at 3: constant from then on, but not before."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.age = 0
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        self.age = min(self.age + 1, 3)
        return agent.state.pos[:, 0] * self.age


class LateStart(FullFrozen):
    """A counter that stops at 300."""

    EXPECT = "eager"
    CAUSE = "age"

    def reward(self, agent):
        self.age = min(self.age + 1, 300)
        return agent.state.pos[:, 0] * (self.age // 100)


class Toggled(Zoo):
    """A truth that every step turns over."""

    EXPECT, CAUSE = "eager", "even"

    def make_world(self, batch_dim, device, **kwargs):
        self.even = True
        return super().make_world(batch_dim, device, **kwargs)

    def post_step(self):
        self.even = not self.even

    def reward(self, agent):
        return agent.state.pos[:, 0] if self.even else agent.state.pos[:, 1]


class Restored(Toggled):
    """A number that is changed and put back within one step."""

    EXPECT = "either"

    def reward(self, agent):
        self.even = False
        value = agent.state.pos[:, 0] if self.even else agent.state.pos[:, 1]
        self.even = True
        return value

    def post_step(self):
        pass
