"""VMAS's transport with packages whose mass is not known: a number of its own in every environment."""

import torch
from vmas.scenarios.transport import Scenario as Transport

LIGHT, HEAVY = 1.0, 60.0


class Scenario(Transport):
    """A mass that is a tensor [num_envs, 1], drawn at resets, is part of the state: so it has a gradient."""

    def reset_world_at(self, env_index: int | None = None) -> None:
        """See `BaseScenario`."""
        super().reset_world_at(env_index)
        for package in self.packages:
            if env_index is None:
                package.mass = torch.empty(self.world.batch_dim, 1, device=self.world.device).uniform_(LIGHT, HEAVY)
            else:
                package.mass[env_index] = torch.empty(1, device=self.world.device).uniform_(LIGHT, HEAVY)
