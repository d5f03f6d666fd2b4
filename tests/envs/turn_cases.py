"""Games in PettingZoo's AEC manner, written without its package: Nim, and a round of three who drop out."""

import numpy as np
from gymnasium import spaces

STONES = 10


class Nim:
    """Two take one to three stones in turn; who takes the last wins, 1 to -1. A move that is not there fails."""

    def __init__(self, stones=STONES):
        self.stones, self.possible_agents, self.agents = stones, ["player_0", "player_1"], []

    def agent_iter(self):
        while self.agents:
            yield self.agent_selection

    def observation_space(self, agent):
        return spaces.Dict({
            "observation": spaces.Box(0, 1, (self.stones + 1,), np.int8), "action_mask": spaces.MultiBinary(3)
        })  # fmt: skip

    def action_space(self, agent):
        return spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        self.agents, self.left = list(self.possible_agents), self.stones
        self.agent_selection = self.agents[0]
        self.rewards, self.infos = dict.fromkeys(self.agents, 0), {agent: {} for agent in self.agents}
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))

    def observe(self, agent):
        mask = np.arange(1, 4) <= (self.left if agent == self.agent_selection else 0)
        return {"observation": np.eye(self.stones + 1, dtype=np.int8)[self.left], "action_mask": mask.astype(np.int8)}

    def last(self):
        agent = self.agent_selection
        told = self.rewards, self.terminations, self.truncations, self.infos
        return self.observe(agent), *(each[agent] for each in told)

    def step(self, action):
        assert 0 <= action < min(3, self.left), "stones that are not there"
        mover, other = self.agent_selection, self.possible_agents[self.agent_selection == "player_0"]
        self.left -= int(action) + 1
        if self.left == 0:
            self.rewards = {mover: 1, other: -1}
            self.terminations = dict.fromkeys(self.agents, True)
        self.agent_selection = other

    def close(self):
        pass


class Round:
    """Three agents, in the order 0, 0, 2, 1 and again; agent i drops out with its own turn number 2 + i.

    As AEC wants it, who has dropped out must be stepped with None before the others go on. Every turn pays 1 to who
    acts and 0.5 to the one of the next number, as long as both are there. Actions are masked by the info of who acts:
    as many are open as it has had turns, at most three. Who drops out last is truncated with `cut`.
    """

    ORDER = (0, 0, 2, 1)

    def __init__(self, cut=False, stubborn=False):
        self.possible_agents, self.agents = [f"walker_{i}" for i in range(3)], []
        self.cut, self.stubborn = cut, stubborn

    def agent_iter(self):
        while self.agents:
            yield self.agent_selection

    def observation_space(self, agent):
        return spaces.Box(0, 100, (2,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        self.agents, self.time, self.place = list(self.possible_agents), 0, 0
        self.turns = dict.fromkeys(self.agents, 0)
        self.terminations, self.truncations = (dict.fromkeys(self.agents, False) for _ in range(2))
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._select()

    def _select(self):
        over = [agent for agent in self.agents if self.terminations[agent] or self.truncations[agent]]
        living = [self.possible_agents[i] for i in self.ORDER[self.place :] + self.ORDER]
        living = [agent for agent in living if agent in self.agents and agent not in over]
        self.agent_selection = (over + living)[0] if over or living else None
        mask = {"action_mask": np.arange(3) <= self.turns.get(self.agent_selection, 0)}
        self.infos = {agent: mask if agent == self.agent_selection else {} for agent in self.agents}

    def observe(self, agent):
        assert agent in self.agents, "nobody asks the dead"
        return np.array([1 + self.time, self.turns[agent]], dtype=np.float32)

    def step(self, action):
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            assert action is None, "the dead do not act"
            if not self.stubborn:
                for by_agent in (self.terminations, self.truncations, self.rewards, self.infos):
                    del by_agent[agent]
                self.agents.remove(agent)
        else:
            assert action <= self.turns[agent], "a closed door"
            self.time, self.turns[agent] = self.time + 1, self.turns[agent] + 1
            number = self.possible_agents.index(agent)
            following = self.possible_agents[(number + 1) % 3]
            self.rewards = dict.fromkeys(self.agents, 0.0) | {agent: 1.0}
            if following in self.agents:
                self.rewards[following] += 0.5
            last = len(self.agents) == 1
            if self.turns[agent] == 2 + number:
                (self.truncations if self.cut and last else self.terminations)[agent] = True
            while self.ORDER[self.place] != number:
                self.place = (self.place + 1) % 4
            self.place = (self.place + 1) % 4
        self._select()

    def close(self):
        pass


def env(stones=STONES):
    return Nim(stones)
