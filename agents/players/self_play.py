"""Self-play: past versions of a policy, kept in the run directory, and which of them play in a rollout.

Shapes: E environments, A agents in a group, F features, D action dimensions.
"""

import copy
import random
from pathlib import Path

import torch
from torch import Tensor

from agents.models.actor import Actor
from agents.policies.group_settings import GroupSettings
from marl.callbacks.base import Callback
from marl.checkpoints import checkpoint_file
from marl.core.errors import UserError
from marl.core.seeding import derive
from marl.engine.run_view import RunView


class Pool:
    """Versions of one group's actor at multiples of `every` iterations: `pool/GROUP/000010.safetensors`.

    Which versions play in an iteration depends on the run's seed and the iteration alone, so a resumed run plays
    against the same ones. Versions are never deleted. A run that goes back rewrites what comes after.

    Args:
        group: whose pool it is.
        settings: of that group.
        actor: the actor whose versions are kept; it goes on learning.
        seed: the run's.
    """

    def __init__(self, group: str, settings: GroupSettings, actor: Actor, seed: int) -> None:
        self.group, self.settings, self.actor, self.seed = group, settings, actor, seed
        self.folder: Path | None = None
        self.players: list[Actor] = []

    def keep_in(self, folder: Path) -> None:
        """Versions lie in `folder` from now on."""
        self.folder = folder

    def file(self, iteration: int) -> Path:
        """Where the version of an iteration lies. Raises UserError where the run has no directory."""
        if self.folder is None:
            raise UserError(f"groups.{self.group}: past versions are kept in a run directory; train with Trainer.fit")
        return self.folder / f"{iteration:06d}.safetensors"

    def keep(self, iteration: int) -> None:
        """Write the actor as it now is, if a version is due."""
        if iteration % self.settings.every == 0:
            about = {"group": self.group, "iteration": str(iteration)}
            checkpoint_file.save_weights(self.file(iteration), self.actor.state_dict(), about)

    def versions(self, iteration: int) -> list[int]:
        """Iterations of the versions that may play in `iteration`, oldest first: at most `size`, evenly spread."""
        count = iteration // self.settings.every + 1
        size = min(count, self.settings.size)
        places = [round(i * (count - 1) / max(size - 1, 1)) for i in range(size)] if size > 1 else [count - 1]
        return [place * self.settings.every for place in places]

    def drawn(self, iteration: int) -> list[int]:
        """The versions that play in `iteration`, block by block."""
        versions = self.versions(iteration)
        weights = None if self.settings.draw == "uniform" else range(1, len(versions) + 1)
        rng = random.Random(derive(self.seed, f"pool {self.group} {iteration}"))
        return rng.choices(versions, weights, k=self.settings.at_once)

    def load(self, iteration: int) -> None:
        """Draw and read the versions for `iteration`. Raises UserError where a file is missing or damaged."""
        if not self.players:
            self.players = [copy.deepcopy(self.actor).requires_grad_(False) for _ in range(self.settings.at_once)]
        device = next(self.actor.parameters()).device
        for player, version in zip(self.players, self.drawn(iteration), strict=True):
            player.load_state_dict(checkpoint_file.load_weights(self.file(version), device))

    @torch.no_grad()
    def act(self, observation: Tensor, generator: torch.Generator, mask: Tensor | None) -> Tensor:
        """Each player's block of environments: [E, A, F] -> [E, A, D] in the environment's units."""
        observations = observation.tensor_split(len(self.players))
        masks = [None] * len(observations) if mask is None else mask.tensor_split(len(self.players))
        actions = [
            player.head.to_env(player.act(o, generator=generator, mask=m)[0])
            for player, o, m in zip(self.players, observations, masks, strict=True)
            if len(o)
        ]
        return torch.cat(actions)


class PoolCheckpointer(Callback):
    """Writes the versions of pools into the run directory as training goes on."""

    def __init__(self, pools: list[Pool]) -> None:
        self.pools = pools

    def on_start(self, trainer: RunView) -> None:
        """The first version is the untrained one."""
        for pool in self.pools:
            pool.keep_in(Path(trainer.run_dir) / "pool" / pool.group)
            if trainer.iteration == 0:
                pool.keep(0)

    def on_iteration(self, trainer: RunView, record: dict) -> None:
        """A version where one is due."""
        for pool in self.pools:
            pool.keep(trainer.iteration)
