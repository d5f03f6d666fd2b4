"""What Python state may act on: rewards, infos, dones, observations, actions, forces, places; at once or late."""

import torch
from vmas.simulator.core import Agent

from tests.envs.kernel.zoo.base import Zoo, flat


class _Counting(Zoo):
    """Counts steps in `n`, once per step."""

    CAUSE = r"\bn\b"

    def make_world(self, batch_dim, device, **kwargs):
        self.n = 0
        return super().make_world(batch_dim, device, **kwargs)

    def pre_step(self):
        self.n += 1


class OnInfo(_Counting):
    """Only an info changes late."""

    EXPECT = "eager"

    def info(self, agent):
        return {"late": flat(agent, float(self.n > 200)), "x": agent.state.pos[:, 0]}


class OnDone(_Counting):
    """Every 90th step ends all episodes."""

    EXPECT = "eager"

    def done(self):
        return torch.full((self.world.batch_dim,), self.n % 90 == 0)


class OnDoneLate(_Counting):
    """After 230 steps episodes end earlier."""

    EXPECT = "eager"

    def done(self):
        return self.world.agents[0].state.pos[:, 0].abs() > (1.0 if self.n < 230 else 0.5)


class OnObservation(_Counting):
    """The observation carries the share of training that is over."""

    EXPECT = "eager"

    def observation(self, agent):
        return torch.cat([agent.state.pos, flat(agent, self.n / 400)[:, None]], -1)


class OnAction(_Counting):
    """After 210 steps actions have half their force."""

    EXPECT = "eager"

    def process_action(self, agent):
        if self.n > 210:
            agent.action.u = agent.action.u * 0.5


class OnActionInPlace(_Counting):
    """Every tenth action is lost."""

    EXPECT = "eager"

    def process_action(self, agent):
        if self.n % 10 == 0:
            agent.action.u.zero_()


class InPostStep(Zoo):
    """The counter goes up in `post_step`."""

    EXPECT, CAUSE = "eager", "m"

    def make_world(self, batch_dim, device, **kwargs):
        self.m = 0
        return super().make_world(batch_dim, device, **kwargs)

    def post_step(self):
        self.m += 1

    def reward(self, agent):
        return agent.state.pos[:, 0] + (self.m > 240)


class OnPlace(_Counting):
    """Every 100th step puts the agent back to the middle."""

    EXPECT = "eager"

    def post_step(self):
        if self.n % 100 == 0:
            self.world.agents[0].set_pos(torch.zeros(self.world.batch_dim, 2), batch_index=None)


class OnPlaceOnce(_Counting):
    """Step 215, and no other, moves the agent."""

    EXPECT = "eager"

    def pre_step(self):
        self.n += 1
        if self.n == 215:
            self.world.agents[0].state.pos = self.world.agents[0].state.pos + 0.1


class OnWorld(_Counting):
    """The counter changes the world's drag."""

    EXPECT, CAUSE = "eager", "drag|n"

    def pre_step(self):
        self.n += 1
        self.world._drag = 0.25 if self.n < 220 else 0.5


class OnAgent(_Counting):
    """The counter changes the agent's mass."""

    EXPECT, CAUSE = "eager", "mass|n"

    def pre_step(self):
        self.n += 1
        self.world.agents[0].mass = 1.0 + self.n / 100


class OnWorldItself(Zoo):
    """The counter is an attribute of the world."""

    EXPECT, CAUSE = "eager", "seen"

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        world.seen = 0
        return world

    def reward(self, agent):
        self.world.seen += 1
        return flat(agent, float(self.world.seen > 200))


class OnAgentItself(Zoo):
    """The counter is an attribute of the agent."""

    EXPECT, CAUSE = "eager", "steps_seen"

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        for agent in world.agents:
            agent.steps_seen = 0
        return world

    def reward(self, agent):
        agent.steps_seen += 1
        return flat(agent, float(agent.steps_seen > 200))


class Phase(Zoo):
    """`self.phase = 1` under `if x.any()`: the first environment to cross the line changes all rewards."""

    EXPECT, CAUSE, ALONE = "eager", "phase|effects.py", True

    def make_world(self, batch_dim, device, **kwargs):
        self.phase = 0
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        if (agent.state.pos[:, 1] > 1.15).any():
            self.phase = 1
        return agent.state.pos[:, 0] + self.phase


class PhaseInElse(Phase):
    """`self.phase = 1` in the `else` of `if x.any()`."""

    def reward(self, agent):
        if (agent.state.pos[:, 1] < 0.9).all():
            pass
        else:
            self.phase = 1
        return agent.state.pos[:, 0] + self.phase


class PhaseOffAndOn(Phase):
    """The phase is set and taken back by a condition over the batch."""

    def reward(self, agent):
        if (agent.state.pos[:, 1] > 0.9).any():
            self.phase = 1
        else:
            self.phase = 0
        return agent.state.pos[:, 0] + self.phase


class PhaseUnread(Phase):
    """The phase is set under a condition over the batch, and nothing reads it."""

    EXPECT = "either"

    def reward(self, agent):
        if (agent.state.pos[:, 1] > 0.9).any():
            self.phase = 1
        return agent.state.pos[:, 0]


class LoggedOnly(_Counting):
    """The counter is for the user's own looking: nothing of a step reads it."""

    EXPECT = "either"

    def reward(self, agent):
        return agent.state.pos[:, 0]


class Scripted(Zoo):
    """An agent by script whose script counts its calls."""

    EXPECT, CAUSE = "eager", "turns|effects.py"

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        self.turns = 0
        world.add_agent(Agent(name="other", collide=False, action_script=self.act))
        return world

    def act(self, agent, world):
        self.turns += 1
        agent.action.u = torch.full((world.batch_dim, 2), 0.5 if self.turns % 100 < 50 else -0.5)

    def observation(self, agent):
        return torch.cat([agent.state.pos, self.world.agents[-1].state.pos], -1)


class ScriptedByState(Zoo):
    """An agent by script that follows the first agent, with no state of its own."""

    EXPECT = "kernel"

    def make_world(self, batch_dim, device, **kwargs):
        world = super().make_world(batch_dim, device, **kwargs)
        world.add_agent(Agent(name="other", collide=False, action_script=self.act))
        return world

    def act(self, agent, world):
        agent.action.u = (world.agents[0].state.pos - agent.state.pos).clamp(-1, 1)

    def observation(self, agent):
        return torch.cat([agent.state.pos, self.world.agents[-1].state.pos], -1)


class Memoised(Zoo):
    """The first call computes a constant and keeps it: state that is full after the first step."""

    EXPECT = "either"

    def make_world(self, batch_dim, device, **kwargs):
        self.scale = None
        return super().make_world(batch_dim, device, **kwargs)

    def reward(self, agent):
        if self.scale is None:
            self.scale = 3.0
        return agent.state.pos[:, 0] * self.scale


class Accumulating(Zoo):
    """A return summed up over the episode in a tensor: state that any environment has for itself."""

    EXPECT = "kernel"

    def make_world(self, batch_dim, device, **kwargs):
        self.total = torch.zeros(batch_dim, device=device)
        return super().make_world(batch_dim, device, **kwargs)

    def reset_world_at(self, env_index=None):
        super().reset_world_at(env_index)
        self.total[slice(None) if env_index is None else env_index] = 0.0

    def reward(self, agent):
        self.total += agent.state.pos[:, 0].abs()
        return self.total

    def done(self):
        return self.total > 20.0
