"""A task of pictures and vectors: where to go is seen in a picture only, where one is in numbers only.

Shapes: E environments, A agents, S cells on each side of the board.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from envs.base import Env, EnvError, Transition
from envs.spec import ActionSpec, EnvSpec, GroupSpec, ObservationPart
from marl.core.seeding import restore

COUNT = Annotated[int, Field(ge=1)]
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # stay, up, down, left, right: rows and columns


class PictureSearchEnv(Env):
    """Each agent looks for a target of its own on a board of S x S cells, moving by one cell at a time.

    Observation: `picture` [2, S, S] in bytes, 255 at the agent's own target in the first channel, and at the other
    agents' targets in the second; `position` [2], the agent's row and column from -1 to 1. So what a network must do
    is to read the picture and compare it with the vector. Without the picture the best that one can do is to go to the
    middle.

    Reward to each agent: by how many cells it came nearer to its target (rows and columns added up), over the mean
    distance of two cells drawn at random, 2 (S^2 - 1) / (3 S): so the best return is 1 on average. Without the picture
    it is 1 - 3 S^2 / (4 (S^2 - 1)), 0.24 of 8 x 8 cells. Episodes end at the time limit only.

    Args:
        n_agents: A.
        size: S, even.
        picture: whether agents see it; False: their position only.
        max_steps: time limit, steps.
        global_state: offer everybody's position and target as the global state [4 A].
        num_envs: E.
        seed: of positions and targets.
        device: where everything lives.

    Raises:
        EnvError: a size that is odd.
    """

    def __init__(
        self,
        n_agents: COUNT = 2,
        size: Annotated[int, Field(ge=2)] = 8,
        picture: bool = True,
        max_steps: COUNT = 16,
        global_state: bool = False,
        num_envs: COUNT = 64,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        if size % 2:
            raise EnvError(f"env.size={size}: must be even.")
        self.size, self.picture, self.global_state = size, picture, global_state
        self.num_envs, self.device = num_envs, torch.device(device)
        agents = tuple(f"agent_{i}" for i in range(n_agents))
        pictures = (ObservationPart("picture", (2, size, size), "picture", 255.0),) if picture else ()
        parts = (*pictures, ObservationPart("position", (2,)))
        group = GroupSpec("agents", agents, sum(part.size for part in parts), ActionSpec("discrete", nvec=(5,)),
                          parts=parts)  # fmt: skip
        self.max_steps = max_steps
        self.spec = EnvSpec({"agents": group}, 4 * n_agents if global_state else None, max_steps)
        self.moves = torch.tensor(MOVES, device=self.device)
        self.others = 1 - torch.eye(n_agents, device=self.device)
        self.mean_distance = 2 * (size**2 - 1) / (3 * size)
        self.generator = torch.Generator(self.device)
        self.reset(seed)

    def _draw(self) -> Tensor:
        """Fresh positions and targets, int64 [2, E, A, 2]."""
        shape = (2, self.num_envs, self.spec.groups["agents"].n_agents, 2)
        return torch.randint(self.size, shape, generator=self.generator, device=self.device)

    def _see(self) -> tuple[dict[str, Tensor], Tensor | None]:
        position, target = (2 * cells / (self.size - 1) - 1 for cells in (self.position, self.target))
        state = torch.cat([position, target], -1).flatten(1) if self.global_state else None
        if not self.picture:
            return {"agents": position}, state
        cells = torch.arange(self.size**2, device=self.device)
        own = ((self.target[..., 0] * self.size + self.target[..., 1]).unsqueeze(-1) == cells).float()
        team = (self.others @ own).clamp(max=1)
        return {"agents": torch.cat([255 * own, 255 * team, position], -1)}, state

    def _distance(self) -> Tensor:
        return (self.position - self.target).abs().sum(-1)

    def reset(self, seed: int | None = None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Restart all environments; a seed restarts their random stream as well."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.position, self.target = self._draw()
        self.time = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        return self._see()

    def step(self, action: dict[str, Tensor]) -> Transition:
        """One step with {"agents": int64 [E, A, 1]}."""
        before = self._distance()
        self.position = (self.position + self.moves[action["agents"].squeeze(-1)]).clamp(0, self.size - 1)
        reward = (before - self._distance()) / self.mean_distance
        self.time = self.time + 1
        truncated = self.time >= self.max_steps
        next_observation, next_state = self._see()
        position, target = self._draw()  # for all, needed or not: nothing is read back
        self.position, self.target = (
            torch.where(truncated.view(-1, 1, 1), fresh, old)
            for fresh, old in ((position, self.position), (target, self.target))
        )
        self.time = torch.where(truncated, 0, self.time)
        observation, state = self._see()
        return Transition(
            observation,
            next_observation,
            {"agents": reward},
            torch.zeros_like(truncated),
            truncated,
            state,
            next_state,
        )

    def snapshot(self) -> dict[str, Tensor]:
        """Positions, targets, time and the random stream."""
        tensors = {"position": self.position, "target": self.target, "time": self.time}
        return {**{k: v.clone() for k, v in tensors.items()}, "generator": self.generator.get_state()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Go back to a snapshot. EnvError if it is another environment's."""
        for name in ("position", "target", "time"):
            value = snapshot.get(name)
            if value is None or value.shape != getattr(self, name).shape:
                raise EnvError("this snapshot is of another environment: its positions, targets or sizes differ.")
            setattr(self, name, value.to(self.device, copy=True))
        restore(self.generator, snapshot["generator"])
