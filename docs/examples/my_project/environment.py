"""An environment of one's own that is no VMAS scenario: agents must agree on a number, without a word."""

import torch

from envs.base import Env, EnvError, Transition
from envs.spec import ActionSpec, EnvSpec, GroupSpec


class Agree(Env):
    """Everybody sees what all chose last, itself first, and chooses again; the reward is the share of others who chose
    the same. The best that a team can do is 1 per step (but for the first); choosing at random gives 1 / choices.

    Args:
        n_agents: at least 2.
        choices: numbers to choose from; at least 2.
        max_steps: time limit, steps.
    """

    def __init__(
        self, n_agents: int = 3, choices: int = 4, num_envs: int = 60, max_steps: int = 20, seed: int = 0, device="cpu"
    ):
        if n_agents < 2:
            raise EnvError(f"env.n_agents={n_agents}: no other agent to agree with; at least 2 are needed")
        self.num_envs, self.device, self.choices = num_envs, torch.device(device), choices
        names = tuple(f"agent_{i}" for i in range(n_agents))
        group = GroupSpec("agents", names, n_agents * choices, ActionSpec("discrete", nvec=(choices,)))
        self.spec = EnvSpec({"agents": group}, state_size=None, max_steps=max_steps)
        self.generator = torch.Generator(self.device)  # its own: other random numbers are neither read nor moved
        self.reset(seed)

    def reset(self, seed=None):
        if seed is not None:
            self.generator.manual_seed(seed)
        self.time = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self.last = self._draw()
        return self._observe(self.last), None

    def _draw(self):
        shape = (self.num_envs, self.spec.groups["agents"].n_agents)
        return torch.randint(self.choices, shape, generator=self.generator, device=self.device)

    def _observe(self, last):
        one_hot = torch.nn.functional.one_hot(last, self.choices).float()  # [E, A, choices]
        agents = range(last.shape[1])
        return {"agents": torch.stack([one_hot.roll(-i, 1).flatten(1) for i in agents], 1)}  # [E, A, F]

    def step(self, action):
        chosen = action["agents"].squeeze(-1)  # [E, A]
        same = (chosen.unsqueeze(-1) == chosen.unsqueeze(-2)).float().sum(-1) - 1
        reward = same / (chosen.shape[1] - 1)
        self.time = self.time + 1
        truncated = self.time >= self.spec.max_steps  # the time limit is no end of the task: it truncates
        final = self._observe(chosen)  # where the step led, before the reset
        self.last = torch.where(truncated.unsqueeze(-1), self._draw(), chosen)
        self.time = torch.where(truncated, 0, self.time)
        terminated = torch.zeros_like(truncated)
        return Transition(self._observe(self.last), final, {"agents": reward}, terminated, truncated)

    def snapshot(self):
        return {"time": self.time.clone(), "last": self.last.clone(), "generator": self.generator.get_state()}

    def restore(self, snapshot):
        self.time, self.last = snapshot["time"].clone(), snapshot["last"].clone()
        self.generator.set_state(snapshot["generator"].cpu())
