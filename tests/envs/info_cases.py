"""Environments that tell figures of themselves, as others write them: gymnasium's, PettingZoo's, vectorised ones."""

import itertools

import gymnasium
import numpy as np
from gymnasium import spaces

NUMBERS = itertools.count()  # of the copies that were made


class Goal(gymnasium.Env):
    """Episodes of `lengths` steps in turn, or of 2 to 6 drawn. It sees the step's number and a drawn height.

    Its info tells the height, under a key of a nested dict how often it stepped, a text, a picture, and, in the last
    step only, whether it succeeded: "always", every other copy does ("half"), or never.
    """

    observation_space = spaces.Box(-100, 100, (2,), np.float32)
    action_space = spaces.Discrete(3)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, lengths=(), success="always", render_mode=None):
        self.render_mode = render_mode
        self.lengths = itertools.cycle(lengths) if lengths else None
        self.success = {"always": True, "half": next(NUMBERS) % 2 == 0, "never": False}[success]

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.length = 0, next(self.lengths) if self.lengths else int(self.np_random.integers(2, 7))
        return self.look(), {"height": 99.0, "reset": 1.0, "action_mask": np.ones(3, np.int8)}

    def render(self):
        """A picture, wider than high, as bright as twenty times the step's number."""
        return np.full((20, 40, 3), 20 * self.time, np.uint8)

    def look(self):
        self.height = float(self.np_random.integers(-50, 50))
        return np.array([self.time, self.height], np.float32)

    def step(self, action):
        self.time += 1
        observation, over = self.look(), self.time == self.length
        info = {"height": self.height, "of": {"steps": self.time}, "text": "no number", "picture": np.zeros((9, 9))}
        info |= {"action_mask": np.ones(3, np.int8), "pair": np.array([self.time, 2.0])}
        return observation, 0.0, over, False, info | ({"success": self.success} if over else {})


def goals(num_envs, mode="NextStep", max_episode_steps=100, **kwargs):
    """`num_envs` of them, stepped as a vector."""

    def one():
        return gymnasium.wrappers.TimeLimit(Goal(**kwargs), max_episode_steps)

    return gymnasium.vector.SyncVectorEnv([one] * num_envs, autoreset_mode=gymnasium.vector.AutoresetMode(mode))


class Hidden(Goal):
    """It has nothing to show."""

    metadata = {"render_modes": ["human"]}


class Broken(Goal):
    """What it shows is no picture."""

    def render(self):
        return [1, 2]


class Walkers:
    """PettingZoo: two agents, the first leaves after two steps and the second after four; they tell their paces."""

    possible_agents = ("walker_0", "walker_1")
    metadata = {"name": "walkers"}

    def observation_space(self, agent):
        return spaces.Box(0, 100, (1,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.time, self.agents = 0, list(self.possible_agents)
        return {agent: np.ones(1, np.float32) for agent in self.agents}, {agent: {"pace": 7.0} for agent in self.agents}

    def step(self, actions):
        self.time += 1
        there, last = self.agents, {"walker_0": 2, "walker_1": 4}
        over = {agent: self.time == last[agent] for agent in there}
        self.agents = [agent for agent in there if not over[agent]]
        infos = {agent: {"pace": 10.0 * last[agent] + self.time} for agent in there}
        infos["walker_1"]["only"] = np.float64(self.time)
        no = dict.fromkeys(there, False)
        return {a: np.ones(1, np.float32) for a in there}, dict.fromkeys(there, 1.0), over, no, infos

    def close(self):
        pass


if "InfoGoal-v0" not in gymnasium.registry:  # worker processes know it by importing this module
    gymnasium.register("InfoGoal-v0", entry_point=Goal, vector_entry_point=goals)
    gymnasium.register("InfoHidden-v0", entry_point=Hidden)
    gymnasium.register("InfoBroken-v0", entry_point=Broken)
