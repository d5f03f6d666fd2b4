"""A countdown as gymnasium environments write it, single and vectorised in each way of resetting."""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv


class Countdown(gymnasium.Env):
    """Begins with 2 to 6 and counts down; at 0 it ends. It sees the number and the last action, earns their sum."""

    def __init__(self, choices=3, masks="none", render_mode=None):
        self.masks, self.choices = masks, choices
        sight = spaces.Box(-10, 10, (2,), np.float32)
        masked = {"number": sight, "action_mask": spaces.MultiBinary(choices)}
        self.observation_space = spaces.Dict(masked) if masks == "observation" else sight
        self.action_space = spaces.Discrete(choices, start=5)

    def _show(self, action):
        self.open = np.zeros(self.choices, np.int8)
        self.open[self.left % self.choices] = 1
        observation = np.array([self.left, action], np.float32)
        observation = {"number": observation, "action_mask": self.open} if self.masks == "observation" else observation
        with_mask = self.masks == "info" or (self.masks == "late" and action)
        return observation, {"action_mask": self.open} if with_mask else {}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 7))
        return self._show(0)

    def step(self, action):
        assert self.action_space.contains(action)
        assert self.masks in ("none", "late") or self.open[action - 5], "a closed choice"
        self.left -= 1
        return *self._show(action)[:1], float(self.left + action), self.left == 0, False, self._show(action)[1]


class Pulls(gymnasium.Env):
    """A Box of two by two actions is summed up; nothing ever ends."""

    observation_space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,), np.float32)})
    action_space = spaces.Box(-2, 2, (2, 2), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation(), {}

    def observation(self):
        return {"a": self.np_random.integers(3), "b": self.np_random.uniform(-1, 1, 2).astype(np.float32)}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.observation(), float(action.sum()), False, False, {}


def make(num_envs, mode="NextStep", single=Countdown, max_episode_steps=None, **kwargs):
    """`num_envs` of them, stepped as a vector; without a mode it does not say how it resets."""
    limit = gymnasium.wrappers.TimeLimit

    def one():
        return single(**kwargs) if max_episode_steps is None else limit(single(**kwargs), max_episode_steps)

    vector_env = SyncVectorEnv([one] * num_envs, autoreset_mode=AutoresetMode(mode or "NextStep"))
    if mode is None:
        vector_env.metadata = {}
    return vector_env
