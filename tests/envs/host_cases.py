"""Environments for tests as others write them: masked actions and deaths in PettingZoo's and gymnasium's manner."""

import os

import gymnasium
import numpy as np
from gymnasium import spaces

CHOICES = (4, 4, 3)


class Doors:
    """Three agents, the last with fewer doors; agent i dies after 3 + 2 i steps; a closed door or a dead actor fails.

    A living agent sees how many steps it has lived, counted from one. masks: "observation", "info" or "none".
    """

    def __init__(self, masks="observation", choices=CHOICES):
        self.masks, self.possible_agents = masks, [f"walker_{i}" for i in range(3)]
        self.choices = dict(zip(self.possible_agents, choices, strict=True))
        self.agents = []

    def observation_space(self, agent):
        sight = spaces.Box(0, 100, (2,), np.float32)
        mask = {"action_mask": spaces.MultiBinary(self.choices[agent])} if self.masks == "observation" else {}
        return spaces.Dict({"observation": sight, **mask})

    def action_space(self, agent):
        return spaces.Discrete(self.choices[agent])

    def reset(self, seed=None, options=None):
        self.rng, self.time, self.agents = np.random.default_rng(seed), 0, list(self.possible_agents)
        return self._show(self.agents)

    def _show(self, agents):
        self.open = {agent: self.rng.random(self.choices[agent]) < 0.4 for agent in agents}
        for doors in self.open.values():
            doors[self.rng.integers(len(doors))] = True
        observations = {agent: {"observation": np.full(2, 1 + self.time, np.float32)} for agent in agents}
        infos = {agent: {} for agent in agents}
        where = observations if self.masks == "observation" else infos
        for agent in agents if self.masks != "none" else ():
            where[agent]["action_mask"] = self.open[agent].astype(np.int8)
        return observations, infos

    def step(self, actions):
        assert list(actions) == self.agents, "the dead do not act"
        assert self.masks == "none" or all(self.open[agent][door] for agent, door in actions.items()), "a closed door"
        self.time += 1
        there, flags = self.agents, {a: self.time >= 3 + 2 * i for i, a in enumerate(self.possible_agents)}
        observations, infos = self._show(there)
        self.agents = [agent for agent in there if not flags[agent]]
        rewards = {agent: float(door) for agent, door in actions.items()}
        return observations, rewards, {a: flags[a] for a in there}, dict.fromkeys(there, False), infos

    def close(self):
        pass


class Walker(gymnasium.Env):
    """The same for one who does not die, with two choices at once and a tuple of masks in the info."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.MultiDiscrete([3, 2])

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self._show()

    def _show(self):
        self.open = tuple((self.np_random.random(n) < 0.3).astype(np.int8) for n in (3, 2))
        for doors in self.open:
            doors[self.np_random.integers(len(doors))] = 1
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), {"action_mask": self.open}

    def step(self, action):
        assert all(doors[door] for doors, door in zip(self.open, action, strict=True)), "a closed door"
        observation, info = self._show()
        return observation, 0.0, False, False, info


class Dying(Doors):
    """Its process ends in the second step."""

    def step(self, actions):
        if self.time == 1:
            os._exit(3)
        return super().step(actions)


class Parting:
    """Three agents that see how many steps they have taken and earn 1 each step; all end in their own way.

    The first is terminated after 2 steps, the second cut off after `cut`, the third terminated after 5. What is still
    told of those who ended is nonsense. leaves: whether `agents` leaves them out. back: the step after which the first
    is named again, for 1 step, so that it can be told from before.
    """

    def __init__(self, cut=4, leaves=True, back=None):
        self.possible_agents = [f"walker_{i}" for i in range(3)]
        self.agents, self.ends, self.leaves, self.back = [], (2, cut, 5), leaves, back

    def observation_space(self, agent):
        return spaces.Box(-100, 100, (1,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.time, self.lived, self.agents = 0, dict.fromkeys(self.possible_agents, 0), list(self.possible_agents)
        self.gone = set()
        return self._see(), {agent: {} for agent in self.agents}

    def _see(self):
        return {a: np.full(1, -50 if a in self.gone else 1 + self.lived[a], np.float32) for a in self.possible_agents}

    def step(self, actions):
        assert list(actions) == self.agents, "whoever is named acts"
        self.time += 1
        for agent in actions:
            self.lived[agent] += 1
        over = [a for a, n in zip(self.possible_agents, self.ends, strict=True) if self.time == n]
        if self.back is not None and self.time == self.back + 1:
            over.append(self.possible_agents[0])
        seen = self._see()
        rewards = {a: 77.0 if a in self.gone else 1.0 for a in self.possible_agents}
        terminations = {a: a in over and a != self.possible_agents[1] for a in self.possible_agents}
        truncations = {a: a in over and a == self.possible_agents[1] for a in self.possible_agents}
        self.gone |= set(over)
        if self.leaves:
            self.agents = [agent for agent in self.agents if agent not in self.gone]
        if self.time == self.back:
            first = self.possible_agents[0]
            self.agents, self.lived[first] = [first, *self.agents], 10
            self.gone.discard(first)
            seen[first] = np.full(1, 11, np.float32)
        return seen, rewards, terminations, truncations, {agent: {} for agent in self.possible_agents}

    def close(self):
        pass


class Endless(Parting):
    """Both agents are terminated after 4 steps, each, and `agents` goes on naming them; both earn 1 each step."""

    def __init__(self):
        super().__init__(cut=4, leaves=False)
        self.possible_agents, self.ends = self.possible_agents[:2], (4, 4)

    def step(self, actions):
        seen, rewards, *_, infos = super().step(actions)
        over = dict.fromkeys(self.possible_agents, self.time >= 4)
        return seen, dict.fromkeys(rewards, 1.0), over, dict.fromkeys(over, False), infos
