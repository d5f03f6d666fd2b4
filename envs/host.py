"""Environments that live in Python objects, one per copy, behind the contract: gymnasium's and PettingZoo's.

They are stepped one after another on the CPU, so they are as slow as they are elsewhere. An episode is a function of
its seed and its actions: that is what a snapshot holds, and restoring one plays the running episodes again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.base import ActionError, ActionSpec, Env, EnvError, EnvSpec, Transition
from envs.groups import Group, assign
from envs.random import spread

Observations = dict[str, Any]  # by agent
ACTIONS = "Box, Discrete, MultiDiscrete or MultiBinary"


class Copy(ABC):
    """One copy of an environment with named agents, in plain Python."""

    agents: tuple[str, ...]
    observation_spaces: dict[str, gymnasium.Space]
    action_spaces: dict[str, gymnasium.Space]

    @abstractmethod
    def reset(self, seed: int) -> Observations:
        """Start the episode that belongs to the seed."""

    @abstractmethod
    def step(self, action: dict[str, Any]) -> tuple[Observations, dict[str, float], bool, bool]:
        """Observations and rewards of the agents that are there, terminated, truncated."""

    @abstractmethod
    def close(self) -> None:
        """Release what the copy holds."""


def action_spec(space: gymnasium.Space, where: str) -> ActionSpec:
    """The space of one agent's actions as an ActionSpec with A = 1. Raises EnvError for other kinds of spaces."""
    if isinstance(space, spaces.Box):
        low, high = (torch.from_numpy(np.asarray(b, dtype=np.float32).reshape(1, -1)) for b in (space.low, space.high))
        return ActionSpec("continuous", low, high)
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", nvec=(int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec("multi_discrete", nvec=tuple(int(n) for n in space.nvec.ravel()))
    if isinstance(space, spaces.MultiBinary):
        return ActionSpec("multi_discrete", nvec=(2,) * int(np.prod(space.shape)))
    raise EnvError(f"{where}: its actions are {space}; {ACTIONS} are allowed.")


def in_space(action: np.ndarray, space: gymnasium.Space) -> Any:
    """An agent's numbers [D] in the form that its space holds."""
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(space.start + action[0])
    if isinstance(space, spaces.MultiDiscrete):
        return (action.reshape(space.shape) + space.start).astype(space.dtype)
    return action.reshape(space.shape).astype(space.dtype)


class HostEnv(Env):
    """E copies stepped in turn, each reset on its own when its episode ends.

    copies: E of them. max_steps: time limit besides the environment's own, None for endless. name: for messages.
    An episode ends when the copy says so; agents that left it before see zeros and get no reward. Every episode has
    a seed of its own, derived from the environment's, the copy and the count of its episodes.

    Raises EnvError for spaces that cannot be a policy's input or output.
    """

    def __init__(self, copies: list[Copy], name: str, max_steps: int | None, heterogeneous: str, seed: int) -> None:
        self.copies, self.num_envs, self.device, self.name = copies, len(copies), torch.device("cpu"), name
        first = self.first = copies[0]
        agents = [SimpleNamespace(name=agent) for agent in first.agents]
        for agent in first.agents:
            if not first.observation_spaces[agent].is_np_flattenable:
                raise EnvError(f"{name}: observations of {agent} are {first.observation_spaces[agent]}, no numbers.")
        sizes = [spaces.flatdim(first.observation_spaces[agent]) for agent in first.agents]
        actions = [action_spec(first.action_spaces[agent], f"{name}, {agent}") for agent in first.agents]
        members = assign(agents, sizes, actions, heterogeneous)
        self._groups = {g: Group(g, who, agents, sizes, actions, [{} for _ in agents]) for g, who in members.items()}
        self.spec = EnvSpec({g: group.spec for g, group in self._groups.items()}, None, max_steps)
        self._sizes = sizes
        self.reset(seed)

    def reset(self, seed: int | None = None) -> tuple[dict[str, Tensor], None]:
        """Restart all copies; a seed restarts the count of episodes that seeds are made of."""
        if seed is not None:
            self._seed, self._episodes = seed, [0] * self.num_envs
        self._played: list[list[np.ndarray]] = [[] for _ in self.copies]
        return self._stacked([self._begin(e) for e in range(self.num_envs)]), None

    def _begin(self, e: int) -> Observations:
        self._episodes[e] += 1
        self._played[e] = []
        return self.copies[e].reset(self._episode_seed(e))

    def _episode_seed(self, e: int) -> int:
        return spread(spread(self._seed, e), self._episodes[e]) % 2**31

    def _stacked(self, seen: list[Observations]) -> dict[str, Tensor]:
        each = []
        for agent, size in zip(self.first.agents, self._sizes, strict=True):
            space, rows = self.first.observation_spaces[agent], np.zeros((self.num_envs, size), dtype=np.float32)
            for e, observations in enumerate(seen):
                if agent in observations:
                    rows[e] = spaces.flatten(space, observations[agent])
            each.append(torch.from_numpy(rows))
        return {name: group.observation(each) for name, group in self._groups.items()}

    def step(self, action: dict[str, Tensor]) -> Transition:
        """One step of all copies with {group: [E, A, D]}. Raises EnvError for other groups or shapes, and for nan."""
        rows = self._rows(action)
        seen, reward = [], torch.zeros(len(self.first.agents), self.num_envs)
        terminated, truncated = torch.zeros(2, self.num_envs, dtype=torch.bool)
        for e in range(self.num_envs):
            observations, gains, over, cut = self._play(e, rows[e])
            seen.append(observations)
            for i, agent in enumerate(self.first.agents):
                reward[i, e] = float(gains.get(agent, 0.0))
            cut = cut or (self.spec.max_steps is not None and len(self._played[e]) >= self.spec.max_steps)
            terminated[e], truncated[e] = over, cut and not over
        after = [self._begin(e) if terminated[e] or truncated[e] else seen[e] for e in range(self.num_envs)]
        return Transition(
            observation=self._stacked(after), next_observation=self._stacked(seen),
            reward={name: group.reward(list(reward)) for name, group in self._groups.items()},
            terminated=terminated, truncated=truncated)

    def _rows(self, action: dict[str, Tensor]) -> np.ndarray:
        """Actions of all agents one after the other, float64 [E, numbers]."""
        handed: list[Any] = [None] * len(self.first.agents)
        for name, group in self._groups.items():
            shape = (self.num_envs, group.spec.n_agents, group.spec.action.size)
            value = action.get(name)
            if value is None or value.shape != shape:
                got = f"no group {name!r}" if value is None else f"shape {tuple(value.shape)} for group {name!r}"
                raise EnvError(f"actions must be {{{name!r}: {list(shape)}, …}}, got {got}.")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ActionError(f"{self.name} refused the action of group {name!r}: not a number.")
            group.hand_out(value, handed)
        return torch.cat([h.double() for h in handed], 1).numpy()

    def _play(self, e: int, row: np.ndarray) -> tuple[Observations, dict[str, float], bool, bool]:
        self._played[e].append(row)
        action, at = {}, 0
        for agent in self.first.agents:
            space = self.first.action_spaces[agent]
            width = action_width(space)
            action[agent] = in_space(row[at : at + width], space)
            at += width
        return self.copies[e].step(action)

    def snapshot(self) -> dict[str, Tensor]:
        """Seed, episodes begun, and what was played in the running ones."""
        longest = max(len(played) for played in self._played)
        width = sum(action_width(space) for space in self.first.action_spaces.values())
        held = torch.zeros(self.num_envs, longest, width, dtype=torch.float64)
        for e, played in enumerate(self._played):
            if played:
                held[e, : len(played)] = torch.from_numpy(np.stack(played))
        return {"seed": torch.tensor(self._seed), "episodes": torch.tensor(self._episodes), "actions": held,
                "lengths": torch.tensor([len(played) for played in self._played])}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Play the running episodes of the snapshot again; exact for environments that are functions of their seed."""
        if snapshot.keys() != {"seed", "episodes", "actions", "lengths"} or len(snapshot["episodes"]) != self.num_envs:
            raise EnvError(f"the snapshot is another environment's; {self.name} has {self.num_envs} copies.")
        self._seed, self._episodes = int(snapshot["seed"]), snapshot["episodes"].tolist()
        for e, length in enumerate(snapshot["lengths"].tolist()):
            self._played[e] = []
            self.copies[e].reset(self._episode_seed(e))
            for row in snapshot["actions"][e, :length].numpy():
                self._play(e, row.copy())

    def close(self) -> None:
        """Close every copy."""
        for copy in self.copies:
            copy.close()


def action_width(space: gymnasium.Space) -> int:
    """Numbers that one action of the space holds."""
    return 1 if isinstance(space, spaces.Discrete) else int(np.prod(space.shape))
