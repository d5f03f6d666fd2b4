"""Environments that live in Python objects, one per copy, behind the contract: gymnasium's and PettingZoo's.

They are stepped on the CPU, one after another or in several processes. An episode is a function of its seed and its
actions: that is what a snapshot holds, and restoring one plays the running episodes again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs.adapters.copies.action_rows import action_parts, action_width
from envs.adapters.copies.env_copies import Copy, Moved, Seen
from envs.adapters.copies.env_workers import Crew, joined
from envs.adapters.copies.host_infos import MASK, stacked
from envs.adapters.copies.observation_rows import ObservationRow
from envs.base import Env, EnvError, Transition, check_actions
from envs.grouping import Group, assign
from envs.infos import InfoRules
from envs.remaining_time import RemainingTime
from envs.spec import ActionSpec, EnvSpec
from marl.core.seeding import spread

ACTIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Tuple or Dict of them"


def action_spec(space: gymnasium.Space, where: str) -> ActionSpec:
    """The space of one agent's actions as an ActionSpec with A = 1. Raises EnvError for other kinds of spaces."""
    if isinstance(space, spaces.Box):
        low, high = (torch.from_numpy(np.asarray(b, dtype=np.float32).reshape(1, -1)) for b in (space.low, space.high))
        return ActionSpec("continuous", low, high)
    if isinstance(space, spaces.Tuple | spaces.Dict):
        return _joint([action_spec(part, where) for part in action_parts(space)])
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", nvec=(int(space.n),))
    if isinstance(space, spaces.MultiDiscrete):
        return ActionSpec("multi_discrete", nvec=tuple(int(n) for n in space.nvec.ravel()))
    if isinstance(space, spaces.MultiBinary):
        return ActionSpec("multi_discrete", nvec=(2,) * int(np.prod(space.shape)))
    raise EnvError(f"{where}: its actions are {space}; {ACTIONS} are allowed.")


def _joint(parts: list[ActionSpec]) -> ActionSpec:
    """Several actions as one: continuous numbers first, then choices."""
    reals = [part for part in parts if part.low is not None]
    nvec = tuple(n for part in parts for n in part.nvec)
    if not reals:
        return ActionSpec("multi_discrete", nvec=nvec)
    low, high = (torch.cat(bounds, -1) for bounds in zip(*((part.low, part.high) for part in reals), strict=True))
    return ActionSpec("hybrid" if nvec else "continuous", low, high, nvec)


class HostEnv(Env):
    """E copies, each reset on its own when its episode ends.

    make: makes one. name: for messages. max_steps: time limit besides the environment's own, None for endless.
    workers: processes that step their share of the copies each, to the same results; 0: all in turn, in this process.
    An episode ends when no agent is left in the copy. Who ended before is dead, sees zeros and earns nothing.
    Every episode has a seed of its own, derived from the environment's, the copy and the count of its episodes.
    Which groups' actions are masked is known from the spaces, or else from the infos of the first reset.
    teams: which agents are a group, as for `envs.grouping.assign`.
    observe_time: see `envs.remaining_time`; max_steps, or else the environment's own limit, is what remains of.

    Raises EnvError for spaces that cannot be a policy's input or output, and for a worker process that died.
    """

    def __init__(
        self,
        make: Callable[[], Copy],
        num_envs: int,
        name: str,
        max_steps: int | None,
        heterogeneous: str,
        seed: int,
        workers: int = 0,
        teams: dict[str, list[str]] | None = None,
        observe_time: bool = False,
    ) -> None:
        self.num_envs, self.device, self.name = num_envs, torch.device("cpu"), name
        self.crew = Crew(make, num_envs, name, workers)
        self.layout = self.crew.layout
        agents = [SimpleNamespace(name=agent) for agent in self.layout.agents]
        rows = [ObservationRow(space) for space in self.layout.sees.values()]
        sizes, parts = [row.size for row in rows], [row.parts for row in rows]
        actions = [action_spec(space, f"{name}, {agent}") for agent, space in self.layout.does.items()]
        self._sizes, self._choices = sizes, [sum(action.nvec) for action in actions]
        members = assign(agents, sizes, actions, heterogeneous, teams, parts)
        infos = [{} for _ in agents]
        self._groups = {g: Group(g, who, agents, sizes, actions, infos, parts) for g, who in members.items()}
        limit = max_steps or self.layout.max_steps
        self._time = RemainingTime(observe_time, limit)
        self.reset(seed)
        has_mask = self._now.has_mask.any(0)
        ends, turns = self.layout.ends, self.layout.in_turns
        for group in self._groups.values():
            # It is not known beforehand whether agents of a PettingZoo environment die before the others.
            kinds = {"action": has_mask[group.members].any(), "alive": ends, "turn": turns}
            masks = tuple(kind for kind, has in kinds.items() if has)
            group.spec = replace(self._time.spec(group.spec), masks=masks, ends=ends)
        self.spec = EnvSpec({g: group.spec for g, group in self._groups.items()}, None, limit)

    def reset(self, seed: int | None = None) -> tuple[dict[str, Tensor], None]:
        """Restart all copies; a seed restarts the count of episodes that seeds are made of."""
        if seed is not None:
            self._seed, self._episodes = seed, np.zeros(self.num_envs, dtype=np.int64)
        self._episodes += 1
        self._played: list[list[np.ndarray]] = [[] for _ in range(self.num_envs)]
        self._now: Seen = joined(self.crew.each("reset", self._seeds()))
        self._final_mask = self._now.mask
        return self._stacked(self._now.observation, self._steps(), self._now.alive), None

    def _steps(self) -> np.ndarray:
        """Steps of the running episodes, int64 [E]."""
        return np.array([len(played) for played in self._played], dtype=np.int64)

    def _seeds(self, ahead: int = 0) -> np.ndarray:
        """Seeds of the running episodes, or of those `ahead`."""
        return np.array([self._episode_seed(e, ahead) for e in range(self.num_envs)])

    def _episode_seed(self, e: int, ahead: int = 0) -> int:
        return spread(spread(self._seed, e), int(self._episodes[e]) + ahead) % 2**31

    def _stacked(self, rows: np.ndarray, steps: np.ndarray, there: np.ndarray) -> dict[str, Tensor]:
        """{group: float32 [E, A, F]} of all agents' rows; steps: [E] of the episodes; there: bool [E, agents]."""
        each = torch.from_numpy(rows).split(self._sizes, 1)
        seen = {name: group.observation(each) for name, group in self._groups.items()}
        if not self._time.observed:
            return seen
        t, there = torch.from_numpy(steps), torch.from_numpy(there)
        return {name: self._time.append(seen[name], t, there[:, g.members]) for name, g in self._groups.items()}

    def masks(self) -> dict[str, dict[str, Tensor]]:
        """See `Env.masks`."""
        choices = torch.from_numpy(self._now.mask).split(self._choices, 1)
        alive, turn = torch.from_numpy(self._now.alive), torch.from_numpy(self._now.turn)
        make = {
            "action": lambda group: group.mask(choices),
            "alive": lambda group: alive[:, group.members],
            "turn": lambda group: turn[:, group.members],
        }
        return {name: {kind: make[kind](g) for kind in g.spec.masks} for name, g in self._groups.items()}

    def final_masks(self) -> dict[str, Tensor]:
        """See `Env.final_masks`; where an environment tells nothing of its last observation, all is allowed there."""
        choices = torch.from_numpy(self._final_mask).split(self._choices, 1)
        return {n: group.mask(choices) for n, group in self._groups.items() if "action" in group.spec.masks}

    def step(self, action: dict[str, Tensor]) -> Transition:
        """One step of all copies with {group: [E, A, D]}. Raises as `check_actions`."""
        rows = self._rows(action)
        for played, row in zip(self._played, rows, strict=True):
            played.append(row)
        steps, before = self._steps(), self._now.alive
        late = steps >= (self.spec.max_steps or 2**62)
        moved: Moved = joined(self.crew.each("step", rows, late, self._seeds(1)))
        over = moved.terminated | moved.truncated
        for e in np.flatnonzero(over):
            self._episodes[e] += 1
            self._played[e] = []
        self._now, self._final_mask, reward = moved.seen, moved.final_mask, list(torch.from_numpy(moved.reward).T)
        for name, group in self._groups.items():
            if "action" not in group.spec.masks and moved.seen.has_mask[:, group.members].any():
                reason = f"{MASK} came to group {name!r} with a step; the first reset must bring it too."
                raise EnvError(f"{self.name}: {reason}")
        return Transition(
            observation=self._stacked(moved.seen.observation, self._steps(), moved.seen.alive),
            next_observation=self._stacked(moved.final, steps, before | moved.seen.alive & ~over[:, None]),
            reward={name: group.reward(reward) for name, group in self._groups.items()},
            terminated=torch.from_numpy(moved.terminated),
            truncated=torch.from_numpy(moved.truncated),
            agent_terminated=self._by_group(moved.agent_terminated),
            agent_truncated=self._by_group(moved.agent_truncated),
            info=stacked(moved.info, {name: group.spec.agents for name, group in self._groups.items()}),
        )

    def _by_group(self, flags: np.ndarray) -> dict[str, Tensor]:
        """{group: bool [E, A]} of all agents' flags, where agents end each on its own."""
        groups = self._groups.items() if self.layout.ends else ()
        return {name: torch.from_numpy(flags[:, group.members]) for name, group in groups}

    def film(self, keep: Callable[[Any], Any]) -> list[list[Any]]:
        """See `Share.film`. Raises EnvError where the copies are in other processes."""
        return self.crew.here.film(keep)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the environment tells of itself ("render_modes", …). Raises EnvError as `film`."""
        return getattr(self.crew.here.copies[0].env, "metadata", None) or {}

    def keep_infos(self, rules: InfoRules) -> None:
        """See `Env.keep_infos`."""
        self.crew.keep_infos(rules)

    def _rows(self, action: dict[str, Tensor]) -> np.ndarray:
        """Actions of all agents one after the other, float64 [E, numbers]."""
        check_actions(self, self.name, action)
        handed: list[Any] = [None] * len(self.layout.agents)
        for name, group in self._groups.items():
            group.split_actions(action[name], handed)
        return torch.cat([h.double() for h in handed], 1).numpy()

    def snapshot(self) -> dict[str, Tensor]:
        """Seed, episodes begun, and what was played in the running ones."""
        longest = max(len(played) for played in self._played)
        width = sum(action_width(space) for space in self.layout.does.values())
        actions = torch.zeros(self.num_envs, longest, width, dtype=torch.float64)
        for e, played in enumerate(self._played):
            if played:
                actions[e, : len(played)] = torch.from_numpy(np.stack(played))
        return {
            "seed": torch.tensor(self._seed),
            "episodes": torch.tensor(self._episodes),
            "actions": actions,
            "lengths": torch.tensor([len(played) for played in self._played]),
        }

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Play the running episodes of the snapshot again; exact for environments that are functions of their seed."""
        if snapshot.keys() != {"seed", "episodes", "actions", "lengths"} or len(snapshot["episodes"]) != self.num_envs:
            raise EnvError(f"the snapshot is another environment's; {self.name} has {self.num_envs} copies.")
        self._seed, self._episodes = int(snapshot["seed"]), snapshot["episodes"].cpu().numpy().copy()
        actions, lengths = snapshot["actions"].cpu().numpy(), snapshot["lengths"].tolist()
        self._played = [[row.copy() for row in actions[e, :length]] for e, length in enumerate(lengths)]
        self._now = joined(self.crew.each("replay", self._seeds(), self._played))

    def close(self) -> None:
        """Close every copy and end the worker processes."""
        self.crew.close()
