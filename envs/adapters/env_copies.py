"""Copies of an environment in plain Python, stepped one after another: what comes out of them as rows of numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.base import EnvError

ByAgent = dict[str, Any]
MASK = "action_mask"  # gymnasium's and PettingZoo's name: a key of a Dict observation, or of an agent's info


class Copy(ABC):
    """One copy of an environment with named agents. Its observations are those of the agents that are there."""

    agents: tuple[str, ...]
    observation_spaces: dict[str, gymnasium.Space]
    action_spaces: dict[str, gymnasium.Space]
    max_steps: int | None = None  # the environment's own time limit, where it tells one
    in_turns = False  # whether agents act one after another; `on_turn` then says who is next
    on_turn: str | None = None

    @abstractmethod
    def reset(self, seed: int) -> tuple[ByAgent, ByAgent]:
        """Start the episode that belongs to the seed: observations and infos."""

    @abstractmethod
    def step(self, action: ByAgent) -> tuple[ByAgent, ByAgent, dict[str, float], bool, bool]:
        """Observations, infos, rewards, terminated, truncated. With the last step no agent leaves: all that were there
        tell what they see."""

    @abstractmethod
    def close(self) -> None:
        """Release what the copy holds."""


class Layout(NamedTuple):
    """What the copies have in common; `sees` are the observations' spaces without masks of actions."""

    agents: tuple[str, ...]
    sees: dict[str, gymnasium.Space]
    does: dict[str, gymnasium.Space]
    max_steps: int | None
    in_turns: bool


class Seen(NamedTuple):
    """What n copies show, the agents side by side: zeros of who is not there, and all choices open to them.

    observation: float32 [n, numbers of all]. alive: bool [n, A]. mask: bool [n, choices of all].
    has_mask: bool [n, A], whether a mask came for the agent. turn: bool [n, A], who acts next; [n, 0] where all do.
    """

    observation: np.ndarray
    alive: np.ndarray
    mask: np.ndarray
    has_mask: np.ndarray
    turn: np.ndarray


class Moved(NamedTuple):
    """A step of n copies: where it led, what was gained [n, A], how it ended [n], and what they show after it."""

    final: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    seen: Seen


class Share:
    """n copies stepped one after another; each is reset on its own when its episode ends."""

    def __init__(self, make: Callable[[], Copy], count: int, name: str) -> None:
        self.copies, self.name = [make() for _ in range(count)], name
        first = self.copies[0]
        self.agents, self.does = first.agents, first.action_spaces
        parts = {agent: parted(first.observation_spaces[agent], self.does[agent]) for agent in self.agents}
        self.sees, self.masked = ({agent: part[i] for agent, part in parts.items()} for i in (0, 1))
        for agent, space in self.sees.items():
            if not space.is_np_flattenable or spaces.flatdim(space) == 0:
                raise EnvError(f"{name}: observations of {agent} are {first.observation_spaces[agent]}, no numbers.")

    def layout(self) -> Layout:
        """What the copies have in common."""
        first = self.copies[0]
        return Layout(self.agents, self.sees, self.does, first.max_steps, first.in_turns)

    def reset(self, seeds: np.ndarray) -> Seen:
        """Start the episode that belongs to each seed [n]."""
        return self._seen([copy.reset(int(seed)) for copy, seed in zip(self.copies, seeds, strict=True)])

    def step(self, rows: np.ndarray, late: np.ndarray, seeds: np.ndarray) -> Moved:
        """Play the rows [n, numbers of all]; late: where time is up after it; seeds: of the episodes that come next."""
        moves = [self._play(copy, row) for copy, row in zip(self.copies, rows, strict=True)]
        terminated = np.array([move[3] for move in moves], dtype=bool)
        truncated = (np.array([move[4] for move in moves], dtype=bool) | late) & ~terminated
        gains = [[float(move[2].get(agent, 0.0)) for agent in self.agents] for move in moves]
        final = [move[:2] for move in moves]
        after = list(final)
        for e in np.flatnonzero(terminated | truncated):
            after[e] = self.copies[e].reset(int(seeds[e]))
        reward = np.array(gains, dtype=np.float32)
        return Moved(self._seen(final).observation, reward, terminated, truncated, self._seen(after))

    def replay(self, seeds: np.ndarray, played: list[np.ndarray]) -> Seen:
        """Play the running episodes again, each from its seed with its rows."""
        now = []
        for copy, seed, rows in zip(self.copies, seeds, played, strict=True):
            shown = copy.reset(int(seed))
            for row in rows:
                shown = self._play(copy, row)[:2]
            now.append(shown)
        return self._seen(now)

    def close(self) -> None:
        """Close every copy."""
        for copy in self.copies:
            copy.close()

    def _play(self, copy: Copy, row: np.ndarray) -> tuple[ByAgent, ByAgent, dict[str, float], bool, bool]:
        action, at = {}, 0
        for agent, space in self.does.items():
            width = action_width(space)
            action[agent] = in_space(row[at : at + width], space)
            at += width
        return copy.step(action)

    def _seen(self, shown: list[tuple[ByAgent, ByAgent]]) -> Seen:
        n = len(shown)
        alive, has_mask = np.zeros((2, n, len(self.agents)), dtype=bool)
        rows, masks = [], []
        for i, agent in enumerate(self.agents):
            space, inside, n_choices = self.sees[agent], self.masked[agent], choices(self.does[agent])
            row, mask = np.zeros((n, spaces.flatdim(space)), dtype=np.float32), np.ones((n, n_choices), dtype=bool)
            for e, (observations, infos) in enumerate(shown):
                if agent not in observations:
                    continue
                observation, alive[e, i] = observations[agent], True
                row[e] = spaces.flatten(space, observation)
                open_ = observation[MASK] if inside else (infos.get(agent) or {}).get(MASK)
                if open_ is not None and takes_masks(self.does[agent]):
                    mask[e], has_mask[e, i] = mask_row(open_, self.does[agent], f"{self.name}: {MASK} of {agent}"), True
            rows.append(row)
            masks.append(mask)
        turn = np.zeros((n, 0), dtype=bool)
        if self.copies[0].in_turns:
            turn = np.array([[copy.on_turn == agent for agent in self.agents] for copy in self.copies])
        return Seen(np.concatenate(rows, 1), alive, np.concatenate(masks, 1), has_mask, turn)


def mask_row(mask: Any, action: gymnasium.Space, whose: str) -> np.ndarray:
    """A mask of actions, or a tuple of one per dimension, as one row: bool [choices]. EnvError for another length."""
    row = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, tuple) else np.ravel(mask)
    if len(row) != choices(action):
        raise EnvError(f"{whose} has {len(row)} entries, but its actions {action} have {choices(action)} choices.")
    return row.astype(bool)


def parted(space: gymnasium.Space, action: gymnasium.Space) -> tuple[gymnasium.Space, bool]:
    """The space of what an agent sees, and whether a mask of its actions lies beside that."""
    if isinstance(space, spaces.Dict) and MASK in space.spaces and takes_masks(action):
        return spaces.Dict({key: part for key, part in space.spaces.items() if key != MASK}), True
    return space, False


def takes_masks(space: gymnasium.Space) -> bool:
    """Whether a mask says of each choice if it is allowed; for MultiBinary gymnasium means something else by it."""
    return isinstance(space, spaces.Discrete | spaces.MultiDiscrete)


def choices(space: gymnasium.Space) -> int:
    """How many choices the space offers, its dimensions added up; a Box none."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return 2 * int(np.prod(space.shape)) if isinstance(space, spaces.MultiBinary) else 0


def action_width(space: gymnasium.Space) -> int:
    """Numbers that one action of the space holds."""
    return 1 if isinstance(space, spaces.Discrete) else int(np.prod(space.shape))


def in_space(action: np.ndarray, space: gymnasium.Space) -> Any:
    """Numbers [..., D] of an agent in the form that its space holds, the leading dimensions kept."""
    if isinstance(space, spaces.Discrete):
        return (space.start + action[..., 0]).astype(space.dtype)
    offset = space.start if isinstance(space, spaces.MultiDiscrete) else 0
    return (action.reshape(*action.shape[:-1], *space.shape) + offset).astype(space.dtype)
