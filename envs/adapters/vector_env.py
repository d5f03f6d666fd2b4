"""A gymnasium environment that is vectorised by itself (`gymnasium.vector.VectorEnv`), as a team of one agent."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space, iterate
from pydantic import Field
from torch import Tensor

from envs.adapters.copies.action_rows import choices, in_space, mask_row, parted, takes_masks
from envs.adapters.copies.host_infos import (
    EVERYTHING,
    FINAL,
    FINAL_INFO,
    MASK,
    Numbers,
    joined_where,
    of_last_steps,
    of_vector,
)
from envs.adapters.copies.observation_rows import ObservationRow
from envs.adapters.gymnasium_env import AGENT, on_the_cpu, registered
from envs.adapters.object_env import action_spec
from envs.adapters.replayed_env import ReplayedEnv
from envs.base import EnvError, Transition
from envs.infos import InfoRules
from envs.remaining_time import RemainingTime
from envs.spec import EnvSpec, GroupSpec

GROUP = "agents"
MODES = ", ".join(mode.value for mode in AutoresetMode)


class VectorEnv(ReplayedEnv):
    """A registered environment with a vector entry point (Towers et al. 2024, section 3): one call steps all E.

    Its `metadata["autoreset_mode"]` may be SameStep (what ended shows its true last observation in the infos), Disabled
    (it is then reset by `options={"reset_mask": …}`) or NextStep: there the step after an end only resets. No agent is
    alive during that step: it earns nothing, counts as no step of an episode, and its action is ignored.

    id: as in `GymnasiumEnv`. kwargs: for `gymnasium.make_vec`. max_steps: time limit, handed over as
    `max_episode_steps`; None keeps the one that the environment was registered with. restart_every: see
    `ReplayedEnv`; a vectorised environment hides its state and its random stream. observe_time: the share of the
    episode that remains as the last feature (`envs.remaining_time`).

    Raises EnvError for ids without a vector entry point, wrong keyword arguments, unsuitable spaces, an unknown
    way to reset, and devices other than the CPU.
    """

    def __init__(
        self,
        id: str,
        num_envs: Annotated[int, Field(ge=1)] = 16,
        max_steps: Annotated[int, Field(ge=1)] | None = None,
        restart_every: Annotated[int, Field(ge=1)] | None = 1000,
        kwargs: dict[str, Any] | None = None,
        observe_time: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        on_the_cpu(device, "gymnasium")
        self.num_envs, self.device, self.name = num_envs, torch.device("cpu"), f"env.id={id!r}"
        keywords = dict(kwargs or {}) | ({} if max_steps is None else {"max_episode_steps": max_steps})
        self.env = self._make(id, keywords)
        self.mode = self.env.metadata.get("autoreset_mode")
        if not isinstance(self.mode, AutoresetMode):
            raise EnvError(
                f"{self.name}: its metadata['autoreset_mode'] is {self.mode!r}; {MODES} are allowed "
                "(gymnasium.vector.AutoresetMode)."
            )
        self._does = self.env.single_action_space
        self._sees, self._masked = parted(self.env.single_observation_space, self._does)
        if not self._sees.is_np_flattenable or spaces.flatdim(self._sees) == 0:
            raise EnvError(f"{self.name}: its observations are {self.env.single_observation_space}, no numbers.")
        self._batch, self._row = batch_space(self._sees, num_envs), ObservationRow(self._sees)
        action = action_spec(self._does, self.name)
        limit = self.env.spec.kwargs.get("max_episode_steps")
        self._time = RemainingTime(observe_time, limit)
        group = self._time.spec(GroupSpec(GROUP, (AGENT,), self._row.size, action, parts=self._row.parts))
        self._keep(restart_every, limit)
        self._rules = EVERYTHING
        self.spec = EnvSpec({GROUP: group}, None, limit)
        self.reset(seed)
        kinds = {"action": self._open is not None, "alive": self.mode is AutoresetMode.NEXT_STEP}
        masks = tuple(kind for kind, has in kinds.items() if has)
        self.spec = EnvSpec({GROUP: replace(group, masks=masks)}, None, limit)

    def _make(self, id: str, kwargs: dict[str, Any]) -> gymnasium.vector.VectorEnv:
        registered(id)
        try:
            return gymnasium.make_vec(id, self.num_envs, "vector_entry_point", **kwargs)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            reason = " ".join(str(error).split())[:300].rstrip(".")
            single = "; env=gymnasium steps copies of single ones" if "vector entry point" in reason else ""
            raise EnvError(f"{self.name}: {reason}{single}.") from error

    def _restart(self, seed: int) -> None:
        observations, infos = self.env.reset(seed=seed)
        self._over = np.zeros(self.num_envs, dtype=bool)
        self._steps = np.zeros(self.num_envs, dtype=np.int64)  # of the running episodes
        self._now, self._open = self._rows(observations), self._choices(observations, infos)
        self._led = self._open

    def _advance(self, action: dict[str, Tensor]) -> Transition:
        """See `ReplayedEnv`."""
        actions = self.spec.groups[GROUP].action.clamped(action[GROUP])
        played = in_space(actions[:, 0].double().numpy(), self._does)
        observations, reward, terminated, truncated, infos = self.env.step(played)
        terminated = np.array(terminated, dtype=bool)
        truncated = np.array(truncated, dtype=bool) & ~terminated
        over = terminated | truncated
        self._steps += ~self._over  # who waits for a reset plays no episode
        steps = self._steps.copy()
        self._steps[over] = 0
        told = {name: torch.from_numpy(rows).unsqueeze(1) for name, rows in self._infos(infos, over).items()}
        self._now, self._open = self._rows(observations), self._choices(observations, infos)
        if self._open is not None and "action" not in self.spec.groups[GROUP].masks:
            raise EnvError(f"{self.name}: {MASK} came with a step; the first reset must bring it too.")
        final, self._led = self._now.copy(), None if self._open is None else self._open.copy()
        if self.mode is AutoresetMode.NEXT_STEP:
            self._over = over
        elif self.mode is AutoresetMode.SAME_STEP and over.any():
            final[over] = self._final(infos, over)
            if self._led is not None:
                self._led[over] = self._final_choices(infos, over)
        elif over.any():
            restarted = self.env.reset(options={"reset_mask": over})
            self._now[over] = self._rows(restarted[0])[over]
            if self._open is not None:  # infos of a reset tell of those that were reset
                self._open[over] = self._choices(*restarted)[over]
        gained = torch.from_numpy(np.array(reward, dtype=np.float32)).view(-1, 1)
        return Transition(
            observation=self._seen()[0],
            next_observation=self._timed(final, steps),
            reward={GROUP: gained},
            terminated=torch.from_numpy(terminated),
            truncated=torch.from_numpy(truncated),
            info={GROUP: told},
        )

    def keep_infos(self, rules: InfoRules) -> None:
        """See `Env.keep_infos`."""
        self._rules = rules

    def _infos(self, infos: dict[str, Any], over: np.ndarray) -> Numbers:
        """What was told of this step, {name: float32 [E, …]}; nothing of resets, nor by those that waited for one."""
        if not self._rules:
            return {}
        if self.mode is not AutoresetMode.SAME_STEP or not over.any():
            return of_vector(infos, self._rules, ~self._over)
        last = of_last_steps(infos.get(FINAL_INFO), self._rules, over)
        return joined_where(over, last, of_vector(infos, self._rules, ~over))

    def _seen(self) -> tuple[dict[str, Tensor], None]:
        return self._timed(np.where(self._over[:, None], np.float32(0), self._now), self._steps, ~self._over), None

    def _timed(self, rows: np.ndarray, steps: np.ndarray, there: np.ndarray | None = None) -> dict[str, Tensor]:
        """What is seen, of rows [E, F]; steps: [E] of the episodes; there: bool [E], who sees anything."""
        seen, where = torch.from_numpy(rows).unsqueeze(1), None if there is None else torch.from_numpy(there[:, None])
        return {GROUP: self._time.append(seen, torch.from_numpy(steps), where)}

    def _waiting(self) -> Tensor:
        return torch.from_numpy(self._over)

    def masks(self) -> dict[str, dict[str, Tensor]]:
        """See `Env.masks`."""
        kinds = self.spec.groups[GROUP].masks
        masks = {"alive": torch.from_numpy(~self._over).unsqueeze(1)} if "alive" in kinds else {}
        if "action" in kinds:
            rows = np.ones((self.num_envs, choices(self._does)), dtype=bool) if self._open is None else self._open
            masks["action"] = torch.from_numpy(rows | self._over[:, None]).unsqueeze(1)
        return {GROUP: masks}

    def final_masks(self) -> dict[str, Tensor]:
        """See `Env.final_masks`."""
        if "action" not in self.spec.groups[GROUP].masks:
            return {}
        everything = np.ones((self.num_envs, choices(self._does)), dtype=bool)
        return {GROUP: torch.from_numpy(everything if self._led is None else self._led).unsqueeze(1)}

    def _rows(self, observations: Any) -> np.ndarray:
        """Observations of all as rows of numbers of their own, float32 [E, F]; masks among them are left out."""
        if isinstance(self._sees, spaces.Box):
            return self._row.ordered(np.array(observations, dtype=np.float32).reshape(self.num_envs, -1))
        each = iterate(self._batch, {key: observations[key] for key in self._sees} if self._masked else observations)
        return np.stack([self._row(one) for one in each]).astype(np.float32)

    def _final(self, infos: dict[str, Any], over: np.ndarray) -> np.ndarray:
        """The true last observations of what is over, float32 [n, F]."""
        final = next((infos[key] for key in FINAL if key in infos), None)
        if final is None:
            raise EnvError(f"{self.name} resets within the step, but its infos hold no {FINAL[0]!r}.")
        if not isinstance(final, np.ndarray) or final.dtype != object:  # all in a batch, like the observations
            return self._rows(final)[over]
        rows = [{key: one[key] for key in self._sees} if self._masked else one for one in final[over]]
        return np.stack([self._row(one) for one in rows]).astype(np.float32)

    def _choices(self, observations: Any, infos: dict[str, Any]) -> np.ndarray | None:
        """Which choices are open, bool [E, choices]; None where the environments say nothing."""
        masks = observations[MASK] if self._masked else infos.get(MASK)
        if masks is None or not takes_masks(self._does):
            return None
        in_all = np.ones(self.num_envs, dtype=bool)
        has_mask = in_all if self._masked else infos.get(f"_{MASK}", in_all)
        everything = np.ones(choices(self._does), dtype=bool)
        each = zip(*masks, strict=True) if isinstance(masks, tuple) else masks  # a tuple: one batch per dimension
        rows = [
            mask_row(one, self._does, f"{self.name}: {MASK}") if has else everything
            for one, has in zip(each, has_mask, strict=True)
        ]
        return np.stack(rows)

    def _final_choices(self, infos: dict[str, Any], over: np.ndarray) -> np.ndarray:
        """What was open at the last observations of what is over, bool [n, choices]; all where it was not told."""
        told = next((infos[key] for key in FINAL if key in infos), None) if self._masked else infos.get(FINAL_INFO)
        if isinstance(told, np.ndarray) and told.dtype == object:  # one by one
            masks = [(one or {}).get(MASK) for one in told[over]]
            where = f"{self.name}: {MASK}"
            everything = np.ones(choices(self._does), dtype=bool)
            return np.stack([everything if m is None else mask_row(m, self._does, where) for m in masks])
        rows = None if told is None else self._choices(told, told)
        return np.ones((int(over.sum()), choices(self._does)), dtype=bool) if rows is None else rows[over]

    def close(self) -> None:
        """Close the environment."""
        self.env.close()
