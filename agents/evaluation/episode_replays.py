"""Recording what agents do: episodes of a policy as states, at evaluations too (`callbacks=replay`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from agents.evaluation.filmed_episodes import FILMED, Film, can_film, check, film
from agents.models.actor import Actor
from agents.models.critic import Critic
from agents.models.hidden_state import Memories
from agents.policies.policy import Policy
from envs.base import STATE
from envs.rendering.animation import gif
from envs.rendering.recording import Act, Recording, Restorer, record
from envs.rendering.scene import image
from envs.vmas.agent_masks import masks_in
from marl.callbacks.base import Callback
from marl.core.errors import UserError
from marl.core.seeding import derive
from marl.engine.run_view import RunView
from marl.loggers.loggers import TensorBoardLogger


def act_with(
    actors: Mapping[str, Actor], critics: Mapping[str, Critic], deterministic: bool = True, seed: int = 0
) -> Act:
    """What `envs.rendering.recording.record` asks for: actions in the environment's units and values, on the CPU.

    To be called once per step of episodes that begin together: where networks have a memory, it is carried in here.
    """
    device = next(iter(actors.values())).parameters().__next__().device
    generator = torch.Generator(device).manual_seed(seed)
    carried: list[Memories] = []

    def act(observation: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        here = {name: value.to(device) for name, value in observation.items()}
        if not carried:  # the number of episodes is known from here on
            episodes = len(next(iter(here.values())))
            carried.extend(Memories(modules, episodes, device) for modules in (actors, critics))
        acting, judging = carried
        masks = masks_in(here, actors)
        allowed, alive = ({n: kinds.get(kind) for n, kinds in masks.items()} for kind in ("action", "alive"))
        actions = {
            n: acting.act(n, a, here[n], deterministic, generator, allowed[n], alive[n]).cpu()
            for n, a in actors.items()
        }
        values = {n: judging.value(n, critic, here[n], here.get(STATE), alive.get(n)) for n, critic in critics.items()}
        return actions, {n: value.cpu() for n, value in values.items()}

    return act


def settings_of(env: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keyword arguments of `VmasEnv` from a configuration's node `env`. Raises UserError for another environment."""
    if not env or env.get("_target_") != "envs.vmas.env.VmasEnv":
        raise UserError(
            f"env._target_={(env or {}).get('_target_')}: only envs.vmas.env.VmasEnv can be drawn so; "
            "scripts/replay.py draws others"
        )
    return {k: v for k, v in env.items() if not k.startswith("_")}


def drawable(env: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """A configuration's node `env`, of which there are pictures. Raises UserError where there are none."""
    kinds = ("envs.vmas.env.VmasEnv", *FILMED)
    if not env or env.get("_target_") not in kinds:
        raise UserError(f"env._target_={(env or {}).get('_target_')}: cannot be drawn; {', '.join(kinds)} can")
    return env


def film_policy(
    policy: Policy,
    episodes: int = 1,
    seed: int = 0,
    deterministic: bool = True,
    max_steps: int | None = None,
    width: int = 480,
) -> Film:
    """Pictures of a saved policy's episodes in the gymnasium or PettingZoo environment it was trained in.

    Raises:
        UserError: as `agents.evaluation.filmed_episodes.film`.
    """
    actors, env = policy.everyone()[0], policy.metadata["env"]
    return film(env, actors, episodes, derive(seed, "replay"), deterministic, max_steps, width)


def record_policy(
    policy: Policy, episodes: int = 1, seed: int = 0, deterministic: bool = True, max_steps: int | None = None
) -> Recording:
    """Episodes of a saved policy in the environment it was trained in.

    Raises:
        UserError: the policy's file doesn't say how its environment is built, or it is no VMAS environment.
    """
    settings = settings_of(policy.metadata.get("env"))
    if max_steps is not None:
        settings["max_steps"] = max_steps
    act = act_with(*policy.everyone(), deterministic, derive(seed, "policy"))
    return record(settings, act, episodes, derive(seed, "replay"), policy.metadata.get("run"))


def strip(recording: Recording, episode: int = 0, moments: int = 4, width: int = 240) -> np.ndarray:
    """Pictures from the beginning to the end of an episode side by side, uint8 [height, moments * width, 3]."""
    restorer, steps = Restorer(recording), recording.lengths[episode]
    times = [round(i * steps / max(1, moments - 1)) for i in range(moments)]
    return np.concatenate([image(restorer.scene(t, episode), width) for t in times], axis=1)


class Replay(Callback):
    """Records episodes at evaluations: `replays/<frames>.safetensors` in the run directory, a strip in TensorBoard.

    Watch them with `scripts/replay.py recording=FILE`. Of gymnasium's and PettingZoo's environments it writes
    `replays/<frames>.gif` instead, by their render mode rgb_array. Training is not disturbed: environment and random
    numbers are the recording's own.

    Args:
        episodes: episodes per recording, all from the same starts every time.
        every: evaluations between recordings.
        thumbnail: pixels of one picture of the strip; 0: none.
    """

    def __init__(
        self,
        episodes: Annotated[int, Field(ge=1)] = 1,
        every: Annotated[int, Field(ge=1)] = 1,
        thumbnail: Annotated[int, Field(ge=0)] = 240,
    ) -> None:
        self.episodes, self.every, self.thumbnail, self.evaluations = episodes, every, thumbnail, 0

    def on_start(self, trainer: RunView) -> None:
        """Raises UserError where no agents play, what cannot be drawn, or where a group has no policy of this run."""
        env = drawable(trainer.config.get("env"))
        if can_film(env):
            check(env)
        trainer.task.playing()

    def on_evaluation(self, trainer: RunView, evaluation: dict[str, float]) -> None:
        self.evaluations += 1
        if (self.evaluations - 1) % self.every:
            return
        with torch.random.fork_rng(devices=[]):
            record = self._film if can_film(trainer.config["env"]) else self._record
            picture = record(trainer, Path(trainer.run_dir) / "replays" / str(trainer.units), evaluation)
        for logger in trainer.loggers:
            if picture is not None and isinstance(logger, TensorBoardLogger):
                logger.writer.add_image("replay", picture, trainer.units, dataformats="HWC")

    def _film(self, trainer, path: Path, evaluation: dict[str, float]) -> np.ndarray | None:
        """Write the episodes, one after the other, as a GIF; returns the strip."""
        actors = trainer.task.playing()[0]
        shown = film(trainer.config["env"], actors, self.episodes, derive(trainer.seed, "replay"))
        path.parent.mkdir(parents=True, exist_ok=True)
        gif(path.with_suffix(".gif"), [picture for each in shown.pictures for picture in each], 1 / shown.fps)
        return shown.strip(height=self.thumbnail) if self.thumbnail else None

    def _record(self, trainer, path: Path, evaluation: dict[str, float]) -> np.ndarray | None:
        """Write a recording; returns the strip."""
        note = {
            "name": trainer.config.get("name"),
            "iteration": trainer.iteration,
            "frames": trainer.units,
            "evaluation": evaluation,
        }
        recording = record(
            settings_of(trainer.config["env"]),
            act_with(*trainer.task.playing()),
            self.episodes,
            derive(trainer.seed, "replay"),
            note,
        )
        recording.save(path.with_suffix(".safetensors"))
        return strip(recording, width=self.thumbnail) if self.thumbnail else None

    def state_dict(self):
        return {"seen": self.evaluations}

    def load_state_dict(self, state):
        self.evaluations = state["seen"]
