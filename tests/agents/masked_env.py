"""A small environment with forbidden actions and agents that die, which fails on any forbidden action."""

import torch

from envs.base import Env, Transition
from envs.spec import ActionSpec, EnvSpec, GroupSpec

A, STEPS, NVEC = 3, 6, (3, 4)


class Doors(Env):
    """Each step about half of the doors are open, at least one per dimension; the last agent dies at its third step.

    Reward: the agent's own choices added up, so that the best is the last open door. Observation: who is open.
    """

    def __init__(self, num_envs=5, seed=0, device="cpu"):
        self.num_envs, self.device = num_envs, torch.device(device)
        action = ActionSpec("multi_discrete", nvec=NVEC)
        group = GroupSpec("agents", ("a", "b", "c"), sum(NVEC), action, ("action", "alive"))
        self.spec = EnvSpec({"agents": group}, None, STEPS)
        self.generator = torch.Generator(self.device)
        self.reset(seed)

    def _draw(self):
        self.open = torch.rand(self.num_envs, A, sum(NVEC), generator=self.generator) < 0.5
        for part in self.open.split(NVEC, -1):
            part[..., 0] |= ~part.any(-1)

    def _alive(self):
        last = torch.arange(A) == A - 1
        return ~(last & (self.time.unsqueeze(-1) >= 2))

    def _observation(self):
        return {"agents": self.open.float() * self._alive().unsqueeze(-1)}

    def reset(self, seed=None):
        if seed is not None:
            self.generator.manual_seed(seed)
        self.time = torch.zeros(self.num_envs, dtype=torch.int64)
        self._draw()
        return self._observation(), None

    def masks(self):
        return {"agents": {"action": self.open.clone(), "alive": self._alive()}}

    def step(self, action):
        choice, alive = action["agents"], self._alive()
        for part, chosen in zip(self.open.split(NVEC, -1), choice.unbind(-1), strict=True):
            assert part.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)[alive].all(), "a door that is not open"
        reward = choice.sum(-1).float() * alive
        self.time = self.time + 1
        self._draw()
        final = self._observation()
        truncated = self.time >= STEPS
        self.time = torch.where(truncated, 0, self.time)
        done = torch.zeros_like(truncated)
        return Transition(self._observation(), final, {"agents": reward}, done, truncated)

    def snapshot(self):
        return {"time": self.time.clone(), "open": self.open.clone(), "generator": self.generator.get_state()}

    def restore(self, snapshot):
        self.time, self.open = snapshot["time"].clone(), snapshot["open"].clone()
        self.generator.set_state(snapshot["generator"].cpu())
