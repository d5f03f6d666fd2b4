"""What the scenarios of the zoo share: one agent that drifts about, resets of its place, and what is expected."""

from __future__ import annotations

import torch
from torch import Tensor
from vmas.simulator.core import Agent, World
from vmas.simulator.scenario import BaseScenario

EXPECTATIONS = ("kernel", "eager", "either", "error")


class Zoo(BaseScenario):
    """One agent in an empty world; an episode ends where it leaves the middle, so that resets are spread out.

    EXPECT: "kernel": there must be one; "eager": there can't be one; "either"; "error": construction must refuse.
    CAUSE: a regular expression for `why_eager` or the refusal, beside the scenario's file.
    REPEATS: whether two runs with the same seed are alike; False for clocks and the system's entropy.
    REFUSABLE: construction may refuse instead (state of single environments outside of tensors).
    RAISES: whether a run ends early, by an EnvError of the same step on both paths.
    ALONE: whether to run it with a single environment as well.
    """

    EXPECT = ""
    CAUSE = ""
    REPEATS = True
    REFUSABLE = False
    RAISES = False
    ALONE = False
    AGENTS = 1

    @classmethod
    def restart(cls) -> None:
        """Puts class and module variables back to where they were at import."""

    @classmethod
    def holds(cls, log: dict[str, Tensor]) -> bool:
        """What must be true of a run whatever the path; log: observation, final, reward, ended [T, E, …]."""
        return True

    def make_world(self, batch_dim: int, device: torch.device, **kwargs) -> World:
        world = World(batch_dim, device)
        for i in range(self.AGENTS):
            world.add_agent(Agent(name=f"agent_{i}", collide=False))
        return world

    def reset_world_at(self, env_index: int | None = None) -> None:
        for agent in self.world.agents:
            rows = self.world.batch_dim if env_index is None else 1
            agent.set_pos(2 * torch.rand(rows, 2, device=self.world.device) - 1, batch_index=env_index)

    def observation(self, agent: Agent) -> Tensor:
        return torch.cat([agent.state.pos, agent.state.vel], dim=-1)

    def reward(self, agent: Agent) -> Tensor:
        return -agent.state.pos.square().sum(-1)

    def done(self) -> Tensor:
        return self.world.agents[0].state.pos[:, 0].abs() > 1.0


def flat(agent: Agent, value: float) -> Tensor:
    """[E]: one number for every environment."""
    return torch.full_like(agent.state.pos[:, 0], value)
