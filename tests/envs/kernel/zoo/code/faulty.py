"""Scenarios that go wrong after a while: the default settings must do what the simulator does."""

import torch

from tests.envs.kernel.zoo.base import Zoo, flat


class _Going(Zoo):
    """Counts its calls in `calls`."""

    CAUSE = "calls"

    def make_world(self, batch_dim, device, **kwargs):
        self.calls = 0
        return super().make_world(batch_dim, device, **kwargs)


class NanAtStep(_Going):
    """Writes NaN from its 40th step on."""

    EXPECT, ALONE = "eager", True

    def reward(self, agent):
        self.calls += 1
        return flat(agent, float("nan") if self.calls > 40 else 0.5)


class NanInState(_Going):
    """Puts NaN into one environment's place at step 60."""

    EXPECT = "eager"

    def post_step(self):
        self.calls += 1
        if self.calls == 60:
            self.world.agents[0].state.pos[0, 0] = torch.nan


class Raises(_Going):
    """Raises at its 600th call."""

    EXPECT, AGENTS, RAISES = "eager", 2, True

    def reward(self, agent):
        self.calls += 1
        if self.calls == 600:
            raise ValueError("the battery is empty")
        return agent.state.pos[:, 0]


class RaisesByState(Zoo):
    """Raises where an environment is far out, whatever the others do."""

    EXPECT = "eager"

    def reward(self, agent):
        if (agent.state.pos[:, 1] > 1.2).any():
            raise RuntimeError("lost")
        return agent.state.pos[:, 0]


class DividesByZero(_Going):
    """Divides by a Python number that reaches zero after 300 calls."""

    EXPECT, RAISES = "eager", True

    def reward(self, agent):
        self.calls += 1
        return agent.state.pos[:, 0] * (1 / (300 - self.calls))


class RunsOut(Zoo):
    """An iterator that is exhausted after 250 steps."""

    EXPECT, CAUSE, RAISES = "eager", "left", True

    def make_world(self, batch_dim, device, **kwargs):
        self.left = iter([0.0] * 250)
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        return flat(agent, next(self.left))


class Widens(_Going):
    """The observation has one number more from its 150th call on."""

    EXPECT, RAISES = "eager", True

    def observation(self, agent):
        self.calls += 1
        parts = [agent.state.pos, agent.state.vel]
        if self.calls > 150:
            parts.append(agent.state.pos[:, :1])
        return torch.cat(parts, -1)


class Narrows(_Going):
    """The observation loses two numbers after 150 calls."""

    EXPECT, RAISES = "eager", True

    def observation(self, agent):
        self.calls += 1
        return agent.state.pos if self.calls > 150 else torch.cat([agent.state.pos, agent.state.vel], -1)


class RewardShape(_Going):
    """The reward is a single number after 150 calls."""

    EXPECT, RAISES = "eager", True

    def reward(self, agent):
        self.calls += 1
        return torch.zeros(()) if self.calls > 150 else agent.state.pos[:, 0]


class DoneType(_Going):
    """done() gives numbers instead of truths after 150 calls."""

    EXPECT, RAISES = "eager", True

    def done(self):
        self.calls += 1
        done = super().done()
        return done.float() if self.calls > 150 else done


class InfoAppears(_Going):
    """An info appears after 150 calls; both paths leave it out, for infos are those of the first step."""

    EXPECT = "either"

    def info(self, agent):
        self.calls += 1
        found = {"x": agent.state.pos[:, 0]}
        return {**found, "late": agent.state.pos[:, 1]} if self.calls > 150 else found


class Infinite(Zoo):
    """The reward is infinite where an environment is at rest, and NaN nowhere."""

    EXPECT = "kernel"

    def reward(self, agent):
        return 1.0 / (agent.state.pos[:, 0] > 0).float()


class NanByState(Zoo):
    """The logarithm of a coordinate: NaN wherever it is negative."""

    EXPECT = "kernel"

    def reward(self, agent):
        return torch.log(agent.state.pos[:, 0])
