"""A scenario with a table of floats: agents warm a line of cells, and are paid for the warmth that they find."""

import torch
from torch import Tensor

from tests.envs.kernel.zoo.base import Zoo

CELLS = 100


class Heat(Zoo):
    """One agent leaves its squared height in its cell and is paid for half of what lay there, which it leaves too."""

    AGENTS = 1

    def reset_world_at(self, env_index: int | None = None) -> None:
        super().reset_world_at(env_index)
        fresh = torch.zeros(self.world.batch_dim, CELLS, device=self.world.device)
        if env_index is None:
            self.heat = fresh
            self.found = fresh[:, 0].clone()
        else:
            self.heat[env_index] = 0.0
            self.found[env_index] = 0.0

    def post_step(self) -> None:
        place = self.world.agents[0].state.pos
        cell = ((place[:, 0] + 2) * CELLS / 400).floor().clamp(0, CELLS - 1).long()
        rows = torch.arange(self.world.batch_dim, device=self.world.device)
        self.found = 0.5 * self.heat[rows, cell]
        self.heat[rows, cell] = self.found + place[:, 1].square()

    def reward(self, agent) -> Tensor:
        return self.found
