"""Recording what agents do: episodes of a policy as states, at evaluations too (`callbacks=replay`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from agents.models.actor import Actor
from agents.models.critic import Critic
from agents.models.hidden_state import Memories
from agents.policies.group_settings import everyone
from agents.policies.policy import Policy
from envs.base import STATE
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
        raise UserError(f"env._target_={(env or {}).get('_target_')}: only envs.vmas.env.VmasEnv can be drawn")
    return {k: v for k, v in env.items() if not k.startswith("_")}


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

    Watch them with `scripts/replay.py recording=FILE`. Training is not disturbed: environment and random numbers are
    the recording's own.

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
        """Raises UserError where no agents play, not in VMAS, or where a group has no policy of this run."""
        settings_of(trainer.config.get("env"))
        everyone(trainer.task.lineup.settings, trainer.task.loss.actors, trainer.task.loss.critics)

    def on_evaluation(self, trainer: RunView, evaluation: dict[str, float]) -> None:
        self.evaluations += 1
        if (self.evaluations - 1) % self.every:
            return
        loss = trainer.task.loss
        note = {
            "name": trainer.config.get("name"),
            "iteration": trainer.iteration,
            "frames": trainer.units,
            "evaluation": evaluation,
        }
        with torch.random.fork_rng(devices=[]):
            recording = record(
                settings_of(trainer.config["env"]),
                act_with(*everyone(trainer.task.lineup.settings, loss.actors, loss.critics)),
                self.episodes,
                derive(trainer.seed, "replay"),
                note,
            )
            recording.save(Path(trainer.run_dir) / "replays" / f"{trainer.units}.safetensors")
            picture = strip(recording, width=self.thumbnail) if self.thumbnail else None
        for logger in trainer.loggers:
            if picture is not None and isinstance(logger, TensorBoardLogger):
                logger.writer.add_image("replay", picture, trainer.units, dataformats="HWC")

    def state_dict(self):
        return {"seen": self.evaluations}

    def load_state_dict(self, state):
        self.evaluations = state["seen"]
