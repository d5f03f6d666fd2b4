"""Environments for tests whose actions have no bounds, or join numbers and choices, as others write them."""

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

INF = np.inf


class Endless(gymnasium.Env):
    """Four numbers: without bounds, with a lower one, with an upper one, with both; it is paid their sum."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(np.array([-INF, 2, -INF, 0], np.float32), np.array([INF, INF, -1, 1], np.float32))

    def __init__(self, render_mode=None):
        pass

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), float(action.sum()), False, False, {}


class Joint(gymnasium.Env):
    """Numbers and choices in a Dict with a Tuple in it; the observation is the last action, number by number.

    Sorted by key its Boxes are deep's [0, inf) and push's two, its choices deep's two (of 2 and 4) and say's (5, 6, 7).
    masks: whether infos forbid choices, in gymnasium's form.
    """

    observation_space = spaces.Box(-INF, INF, (6,), np.float32)
    action_space = spaces.Dict(
        {
            "say": spaces.Discrete(3, start=5),
            "push": spaces.Box(-1, 1, (2,), np.float32),
            "deep": spaces.Tuple([spaces.MultiDiscrete([2, 4]), spaces.Box(0, INF, (1,), np.float32)]),
        }
    )

    def __init__(self, masks=False, render_mode=None):
        self.masks = masks

    def _info(self):
        if not self.masks:
            return {}
        self.open = tuple((self.np_random.random(n) < 0.4).astype(np.int8) for n in (2, 4, 3))
        for choices in self.open:
            choices[self.np_random.integers(len(choices))] = 1
        first, second, word = self.open
        return {"action_mask": {"deep": ((first, second), None), "push": None, "say": word}}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(6, np.float32), self._info()

    def step(self, action):
        assert self.action_space.contains(action), action
        pair, far = action["deep"]
        if self.masks:
            chosen = (*pair, action["say"] - 5)
            assert all(choices[c] for choices, c in zip(self.open, chosen, strict=True)), "a closed choice"
        seen = np.concatenate([far, action["push"], pair, [action["say"]]]).astype(np.float32)
        return seen, 0.0, False, False, self._info()


class Pair:
    """PettingZoo's manner: one agent joins a number and a choice in a Tuple, the other only counts to four."""

    possible_agents = ["mixed_0", "plain_0"]
    spaces_of = {
        "mixed_0": spaces.Tuple([spaces.Discrete(3), spaces.Box(-2, 2, (1,), np.float32)]),
        "plain_0": spaces.Discrete(4),
    }

    def observation_space(self, agent):
        return spaces.Box(-INF, INF, (1,), np.float32)

    def action_space(self, agent):
        return self.spaces_of[agent]

    def _show(self):
        return {agent: np.zeros(1, np.float32) for agent in self.agents}, {agent: {} for agent in self.agents}

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        return self._show()

    def step(self, actions):
        assert all(self.spaces_of[agent].contains(action) for agent, action in actions.items()), actions
        word, push = actions["mixed_0"]
        rewards = {"mixed_0": float(10 * word + push[0]), "plain_0": float(actions["plain_0"])}
        flags = dict.fromkeys(self.agents, False)
        return self._show()[0], rewards, flags, flags, self._show()[1]

    def close(self):
        pass


def vectorised(num_envs, **kwargs):
    """Joint, stepped by gymnasium's own vector environment."""
    env = SyncVectorEnv([lambda: Joint(**kwargs)] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
    env.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
    return env


gymnasium.register("Endless-v0", entry_point=Endless)
gymnasium.register("Joint-v0", entry_point=Joint, vector_entry_point=vectorised)
