"""A run's way through its curriculum: the environments of each stage, kept alive, and where the run plays now."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from agents.collection.arena import Arena
from agents.curriculum.curriculum import Curriculum, Place
from envs.base import Env
from marl.core import distributed
from marl.core.distributed import stream
from marl.core.seeding import derive


class Course:
    """Environments by place, built when a run first comes there.

    Those of a stage (teams of several sizes, say) are kept until the stage is left. One that is returned to goes on
    where it was.

    Args:
        curriculum: says where an iteration plays.
        arena: makes an `Arena` around environments.
        first: where the run begins.
        seed: of the run.
        device: of the environments.

    Attributes:
        arena: where the run plays now.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        arena: Callable[[Env], Arena],
        first: Arena,
        seed: int,
        device: str | torch.device,
    ) -> None:
        self.curriculum, self.make_arena, self.seed, self.device = curriculum, arena, seed, device
        self.arena, self.arenas = first, {curriculum.place: first}

    def seed_of(self, place: Place) -> int:
        """The seed with which a place's environments are built, and their first episodes begin."""
        return derive(self.seed, stream(f"environment, stage {place}"))

    def advance(self, progress: float, iteration: int, started: bool) -> bool:
        """Go on to what an iteration plays; whether a stage changed, whose episodes begin again.

        progress: of the run, 0 to 1. started: whether the run has begun episodes, so that new environments do at once.
        """
        curriculum = self.curriculum
        changed = curriculum.advance(progress, iteration)
        if not started and distributed.main() and not curriculum.evaluates_current:
            for key in curriculum.aside():
                print(f"curriculum: evaluations play {key}", flush=True)
        if changed:
            if distributed.main():
                print(f"curriculum: from iteration {iteration + 1} on {curriculum.told()}", flush=True)
            for arena in self.arenas.values():
                arena.env.close()
            self.arenas = {}
        new = self._enter(curriculum.place)
        self.arena.env.set_progress(progress)
        if new and started:
            self.arena.collector.reset(self.seed_of(curriculum.place))
        return changed

    def _enter(self, place: Place) -> bool:
        """Play at a place; whether its environments are new."""
        new = place not in self.arenas
        if new:
            env = self.curriculum.factory(place)(seed=self.seed_of(place), device=self.device)
            self.arenas[place] = self.make_arena(env)
        self.arena = self.arenas[place]
        return new

    def state_dict(self) -> dict[str, Any]:
        """How far the curriculum is, and where else than now the run has played; the present arena is not in it."""
        others = [
            {"place": list(place), "rollout": arena.collector.state_dict(), **arena.statistics.state_dict()}
            for place, arena in self.arenas.items()
            if arena is not self.arena
        ]
        return {**self.curriculum.state_dict(), "others": others}

    def load_state_dict(self, state: Mapping[str, Any], with_others: bool = True) -> None:
        """Go to the place of `state_dict`; with_others: and put back where else the run had played."""
        self.curriculum.load_state_dict(state)
        others = {tuple(each["place"]): each for each in state["others"] if with_others}
        for place in self.arenas.keys() - others.keys() - {self.curriculum.place}:
            self.arenas.pop(place).env.close()
        for place, saved in others.items():
            self._enter(place)
            self.arena.collector.load_state_dict(saved["rollout"])
            self.arena.statistics.load_state_dict(saved)
        self._enter(self.curriculum.place)
