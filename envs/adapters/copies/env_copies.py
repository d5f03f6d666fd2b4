"""Copies of an environment in plain Python, stepped one after another: what comes out of them as rows of numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.adapters.copies.action_rows import action_width, choices, in_space, mask_row, parted, takes_masks
from envs.adapters.copies.host_infos import EVERYTHING, MASK, told_by
from envs.adapters.copies.observation_rows import ObservationRow
from envs.base import EnvError
from envs.infos import InfoRules

ByAgent = dict[str, Any]


class Copy(ABC):
    """One copy of an environment with named agents. Its observations are those of the agents that are there."""

    agents: tuple[str, ...]
    observation_spaces: dict[str, gymnasium.Space]
    action_spaces: dict[str, gymnasium.Space]
    max_steps: int | None = None  # the environment's own time limit, where it tells one
    ends = False  # whether its agents' episodes end each on its own
    env: Any  # what it was made of: `render` and `metadata` are asked for where episodes are filmed
    in_turns = False  # whether agents act one after another; `on_turn` then says who is next
    on_turn: str | None = None

    @abstractmethod
    def reset(self, seed: int) -> tuple[ByAgent, ByAgent]:
        """Start the episode that belongs to the seed: observations and infos."""

    @abstractmethod
    def step(self, action: ByAgent) -> Played:
        """Observations, infos, rewards, and whose episode was terminated or truncated by this step.

        Observations are those of all that were there before the step, and of those that are there after it: who ended
        tells where it ended. The copy's episode ends where no agent is left.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the copy holds."""


Played = tuple[ByAgent, ByAgent, dict[str, float], dict[str, bool], dict[str, bool]]


class Layout(NamedTuple):
    """What the copies have in common; `sees` are the observations' spaces without masks of actions.

    ends: whether agents' episodes end each on its own.
    """

    agents: tuple[str, ...]
    sees: dict[str, gymnasium.Space]
    does: dict[str, gymnasium.Space]
    max_steps: int | None
    ends: bool
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
    """A step of n copies: where it led, what was gained [n, A], how it ended [n], and what they show after it.

    agent_terminated, agent_truncated: bool [n, A], whose own episode it ended.
    info: what they told of themselves, before a reset (`envs.adapters.copies.host_infos.told_by`).
    final_mask: bool [n, choices of all], what is open where the step led; all where nothing was told.
    """

    final: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    agent_terminated: np.ndarray
    agent_truncated: np.ndarray
    seen: Seen
    info: np.ndarray
    final_mask: np.ndarray


class Share:
    """n copies stepped one after another; each is reset on its own when its episode ends."""

    def __init__(self, make: Callable[[], Copy], count: int, name: str) -> None:
        self.copies, self.name, self.rules = [make() for _ in range(count)], name, EVERYTHING
        self._films: dict[int, list[Any]] = {}
        first = self.copies[0]
        self.agents, self.does = first.agents, first.action_spaces
        parts = {agent: parted(first.observation_spaces[agent], self.does[agent]) for agent in self.agents}
        self.sees, self.masked = ({agent: part[i] for agent, part in parts.items()} for i in (0, 1))
        for agent, space in self.sees.items():
            if not space.is_np_flattenable or spaces.flatdim(space) == 0:
                raise EnvError(f"{name}: observations of {agent} are {first.observation_spaces[agent]}, no numbers.")
        self.rows = {agent: ObservationRow(space) for agent, space in self.sees.items()}

    def layout(self) -> Layout:
        """What the copies have in common."""
        first = self.copies[0]
        return Layout(self.agents, self.sees, self.does, first.max_steps, first.ends, first.in_turns)

    def reset(self, seeds: np.ndarray) -> Seen:
        """Start the episode that belongs to each seed [n]."""
        shown = [copy.reset(int(seed)) for copy, seed in zip(self.copies, seeds, strict=True)]
        self._picture()
        self._now = self._seen(shown)
        return self._now

    def step(self, rows: np.ndarray, late: np.ndarray, seeds: np.ndarray) -> Moved:
        """Play the rows [n, numbers of all]; late: where time is up after it; seeds: of the episodes that come next."""
        there = self._now.alive
        moves = [self._play(copy, row) for copy, row in zip(self.copies, rows, strict=True)]
        self._picture()
        ended, cut = (self._flags([move[k] for move in moves]) & there for k in (3, 4))
        cut &= ~ended
        left = [after(move) for move in moves]
        over = np.array([not observations for observations, _ in left])
        terminated = over & ended.any(1)
        truncated = (over | late) & ~terminated
        cut |= (terminated | truncated)[:, None] & there & ~ended
        gains = [[float(move[2].get(agent, 0.0)) for agent in self.agents] for move in moves]
        reward = np.where(there, np.array(gains, dtype=np.float32), np.float32(0))
        for e in np.flatnonzero(terminated | truncated):
            left[e] = self.copies[e].reset(int(seeds[e]))
            self._films.pop(e, None)
        led = self._seen([move[:2] for move in moves])
        final = self._final(led, there)
        info = told_by([move[1] for move in moves], self.agents, self.rules)
        self._now = self._seen(left)
        return Moved(final, reward, terminated, truncated, ended, cut, self._now, info, led.mask)

    def _flags(self, flags: list[dict[str, bool]]) -> np.ndarray:
        """bool [n, A]."""
        return np.array([[bool(by_agent.get(agent, False)) for agent in self.agents] for by_agent in flags])

    def _final(self, shown: Seen, there: np.ndarray) -> np.ndarray:
        """Where the step led; of who was there and tells nothing any more, what it saw last."""
        silent = there & ~shown.alive
        if not silent.any():
            return shown.observation
        widths = [spaces.flatdim(self.sees[agent]) for agent in self.agents]
        return np.where(np.repeat(silent, widths, 1), self._now.observation, shown.observation)

    def film(self, keep: Callable[[Any], Any]) -> list[list[Any]]:
        """From the next reset on: what `keep` makes of each copy's picture, after the reset and every step of its first
        episode, in a list for each copy."""
        self._keep, self._films = keep, {e: [] for e in range(len(self.copies))}
        return list(self._films.values())

    def _picture(self) -> None:
        for e, film in self._films.items():
            film.append(self._keep(self.copies[e].env.render()))

    def keep_infos(self, rules: InfoRules) -> None:
        """Tell only of figures that the rules keep."""
        self.rules = rules

    def replay(self, seeds: np.ndarray, played: list[np.ndarray]) -> Seen:
        """Play the running episodes again, each from its seed with its rows."""
        now = []
        for copy, seed, rows in zip(self.copies, seeds, played, strict=True):
            shown = copy.reset(int(seed))
            for row in rows:
                shown = after(self._play(copy, row))
            now.append(shown)
        self._now = self._seen(now)
        return self._now

    def close(self) -> None:
        """Close every copy."""
        for copy in self.copies:
            copy.close()

    def _play(self, copy: Copy, row: np.ndarray) -> Played:
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
            as_row, inside, n_choices = self.rows[agent], self.masked[agent], choices(self.does[agent])
            row, mask = np.zeros((n, as_row.size), dtype=np.float32), np.ones((n, n_choices), dtype=bool)
            for e, (observations, infos) in enumerate(shown):
                if agent not in observations:
                    continue
                observation, alive[e, i] = observations[agent], True
                row[e] = as_row(observation)
                open_ = observation[MASK] if inside else (infos.get(agent) or {}).get(MASK)
                if open_ is not None and takes_masks(self.does[agent]):
                    mask[e], has_mask[e, i] = mask_row(open_, self.does[agent], f"{self.name}: {MASK} of {agent}"), True
            rows.append(row)
            masks.append(mask)
        turn = np.zeros((n, 0), dtype=bool)
        if self.copies[0].in_turns:
            turn = np.array([[copy.on_turn == agent for agent in self.agents] for copy in self.copies])
        return Seen(np.concatenate(rows, 1), alive, np.concatenate(masks, 1), has_mask, turn)


def after(move: Played) -> tuple[ByAgent, ByAgent]:
    """Observations and infos of who is left after a step."""
    observations, infos, _, terminated, truncated = move
    left = {a: value for a, value in observations.items() if not (terminated.get(a) or truncated.get(a))}
    return left, infos
