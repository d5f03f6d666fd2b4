"""Environments whose state cannot be saved: what was played since they last began is kept, and played again."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from envs.base import Env, EnvError, Transition, check_actions
from marl.core.seeding import spread


class ReplayedEnv(Env):
    """E environments of another package, whose state cannot be read: a snapshot is a seed and what was played since.

    name: for messages. restart_every: steps after which all are cut off (truncated) and begin again from a seed of
    their own, so that a resumed run plays so many again at most; None: never.
    """

    name: str
    restart_every: int | None

    @abstractmethod
    def _restart(self, seed: int) -> None:
        """All environments from their beginning, from a seed."""

    @abstractmethod
    def _advance(self, action: dict[str, Tensor]) -> Transition:
        """One step of all with {group: [E, A, D]} on the CPU, each reset on its own when its episode ends."""

    @abstractmethod
    def _seen(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """What the policy acts on next, and the global state."""

    def _waiting(self) -> Tensor | None:
        """Which environments wait for their reset and play no episode now, bool [E]; None: none ever does."""
        return None

    def _keep(self, restart_every: int | None, max_steps: int | None) -> None:
        """Cut episodes off by `restart_every` steps. Raises EnvError if no episode could reach its time limit."""
        if restart_every is not None and max_steps is not None and restart_every < max_steps:
            raise EnvError(f"env.restart_every={restart_every} must be at least env.max_steps={max_steps}, or null.")
        self.restart_every = restart_every

    def reset(self, seed: int | None = None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Restart all; a seed restarts the random stream, without one it goes on with a new seed of its own."""
        if seed is not None:
            self._seed, self._restarts = seed, 0
        self._begin()
        return self._seen()

    def _begin(self) -> None:
        """All environments from their beginning, from a seed made of the environment's and the count of restarts."""
        self._restarts += 1
        self._tape: list[dict[str, Tensor]] = []
        self._restart(spread(self._seed, self._restarts) % 2**31)

    @torch.no_grad()
    def step(self, action: dict[str, Tensor]) -> Transition:
        """One step of all with {group: [E, A, D]}. Raises as `check_actions`."""
        check_actions(self, self.name, action)
        waiting = self._waiting()
        moved = self._play({name: action[name].cpu().clone() for name in self.spec.groups})
        if self.restart_every is not None and len(self._tape) >= self.restart_every:
            self._cut_off(moved, waiting)
            self._begin()
            moved.observation, moved.state = self._seen()
        return moved

    def _cut_off(self, moved: Transition, waiting: Tensor | None) -> None:
        """All environments that are not terminated or waiting are truncated by this step."""
        moved.truncated = ~moved.terminated if waiting is None else ~moved.terminated & ~waiting

    def _play(self, action: dict[str, Tensor]) -> Transition:
        self._tape.append(action)
        return self._advance(action)

    def snapshot(self) -> dict[str, Tensor]:
        """Seed, restarts, and what was played since the last one."""
        saved = {"seed": torch.tensor(self._seed), "restarts": torch.tensor(self._restarts)}
        for name, group in self.spec.groups.items():
            empty = torch.zeros(0, self.num_envs, group.n_agents, group.action.size)
            taped = [played[name] for played in self._tape]
            saved[f"actions/{name}"] = torch.stack(taped) if taped else empty
        return saved

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Play on from the last restart; exact for environments that draw from the generators that seeds reach."""
        shapes = {n: (self.num_envs, g.n_agents, g.action.size) for n, g in self.spec.groups.items()}
        if snapshot.keys() != {"seed", "restarts", *(f"actions/{n}" for n in shapes)} or any(
            snapshot[f"actions/{n}"].shape[1:] != shape for n, shape in shapes.items()
        ):
            raise EnvError(f"the snapshot is another environment's; {self.name} has actions of {shapes}.")
        self._seed, self._restarts = int(snapshot["seed"]), int(snapshot["restarts"]) - 1
        self._begin()
        taped = {name: snapshot[f"actions/{name}"] for name in shapes}
        for t in range(len(next(iter(taped.values())))):
            self._play({name: value[t].cpu().clone() for name, value in taped.items()})
