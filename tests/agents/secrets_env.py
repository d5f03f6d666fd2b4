"""An environment whose task needs what the other agents see: how many of the team's bits are one."""

import torch

from envs.base import Env, Transition
from envs.spec import ActionSpec, EnvSpec, GroupSpec

STEPS = 4


class Secrets(Env):
    """Each agent sees one bit, drawn again at every step, and says how many of all are 1; reward 1 for the truth.

    An agent that knows its own bit alone can be right once in two (two agents) at best; knowing all, always. Two of
    its three numbers, `place`, are noise that a graph takes for a position.
    """

    def __init__(self, num_envs=16, n_agents=2, seed=0, device="cpu"):
        self.num_envs, self.device, self.n_agents = num_envs, torch.device(device), n_agents
        action = ActionSpec("discrete", nvec=(n_agents + 1,))
        group = GroupSpec("agents", tuple(f"agent_{i}" for i in range(n_agents)), 3, action)
        self.spec = EnvSpec({"agents": group}, None, STEPS)
        self.generator = torch.Generator(self.device)
        self.reset(seed)

    def _observation(self):
        self.bits = (torch.rand(self.num_envs, self.n_agents, generator=self.generator) < 0.5).float()
        place = torch.rand(self.num_envs, self.n_agents, 2, generator=self.generator)
        return {"agents": torch.cat([place, self.bits.unsqueeze(-1)], -1)}

    def reset(self, seed=None):
        if seed is not None:
            self.generator.manual_seed(seed)
        self.time = torch.zeros(self.num_envs, dtype=torch.int64)
        return self._observation(), None

    def step(self, action):
        reward = (action["agents"].squeeze(-1) == self.bits.sum(-1, keepdim=True)).float()
        self.time = self.time + 1
        final = self._observation()
        truncated = self.time >= STEPS
        self.time = torch.where(truncated, 0, self.time)
        return Transition(final, final, {"agents": reward}, torch.zeros_like(truncated), truncated)

    def snapshot(self):
        return {"bits": self.bits.clone(), "time": self.time.clone(), "random": self.generator.get_state()}

    def restore(self, snapshot):
        self.bits, self.time = snapshot["bits"].clone(), snapshot["time"].clone()
        self.generator.set_state(snapshot["random"])
