"""Episodes in gymnasium's and PettingZoo's environments as pictures, by their own render mode `rgb_array`."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from agents.evaluation.episode_loop import Players, episode_steps
from agents.models.actor import Actor
from envs.adapters.object_env import HostEnv
from envs.base import EnvError
from marl.core.errors import UserError
from marl.core.kinds import build, required

FILMED = ("envs.adapters.gymnasium_env.GymnasiumEnv", "envs.adapters.gymnasium_env.PettingZooEnv")
MODE = "rgb_array"  # gymnasium's and PettingZoo's name
FPS = 30.0  # where the environment does not say how many pictures are a second


@dataclass
class Film:
    """E episodes, of each a picture of the reset and of every step.

    pictures: per episode, with a palette of 256 colours. returns: per episode, the mean over the agents. fps: pictures
    per second of the environment's time.
    """

    pictures: list[list[Image.Image]]
    returns: list[float]
    fps: float

    def strip(self, episode: int = 0, moments: int = 4, height: int | None = None) -> np.ndarray:
        """Pictures from the beginning to the end of an episode side by side, uint8 [height, W, 3]."""
        each, last = self.pictures[episode], len(self.pictures[episode]) - 1
        chosen = [each[round(i * last / max(1, moments - 1))].convert("RGB") for i in range(moments)]
        size = chosen[0].size if height is None else (max(1, chosen[0].width * height // chosen[0].height), height)
        return np.concatenate([np.asarray(picture.resize(size)) for picture in chosen], axis=1)


def can_film(env: Mapping[str, Any] | None) -> bool:
    """Whether a configuration's node `env` is of a kind that has pictures of its own."""
    return bool(env) and env.get("_target_") in FILMED


def filmed_env(env: Mapping[str, Any], episodes: int, seed: int, max_steps: int | None = None) -> HostEnv:
    """The environment of a configuration's node, made to be filmed.

    Raises:
        UserError: it has no render mode `rgb_array`.
    """
    if not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame, which most draw with, would look for a display
    name = f"env.{'id' if 'id' in env else 'env'}={env.get('id', env.get('env'))}"
    kwargs = {**(env.get("kwargs") or {}), "render_mode": MODE}
    changes = {} if max_steps is None else {"max_steps": max_steps}
    node = {**env, "_partial_": True}
    required(node, Callable[..., HostEnv], "env")  # it may come from a file of unknown origin
    try:
        made = build(node)(num_envs=episodes, seed=seed, device="cpu", workers=0, kwargs=kwargs, **changes)
    except EnvError as error:
        raise UserError(f"{name}: cannot be drawn, it refuses render_mode={MODE}: {error}") from error
    if MODE not in (modes := list(made.metadata.get("render_modes", ()))):
        raise UserError(f"{name}: cannot be drawn, its metadata['render_modes'] are {modes}, and {MODE} is needed")
    return made


def check(env: Mapping[str, Any]) -> None:
    """Raises UserError where the environment of a node gives no pictures; draws one to see."""
    made = filmed_env(env, 1, 0)
    try:
        made.film(_keeper(16))
        made.reset(0)
    finally:
        made.close()


@torch.no_grad()
def film(
    env: Mapping[str, Any],
    actors: Mapping[str, Actor],
    episodes: int = 1,
    seed: int = 0,
    deterministic: bool = True,
    max_steps: int | None = None,
    width: int = 480,
) -> Film:
    """Play episodes and keep pictures of them, at most `width` pixels wide.

    Args:
        env: a configuration's node, see `can_film`.
        actors: who plays, by group.

    Raises:
        UserError: the environment has no render mode `rgb_array`, or what it gives is no picture.
    """
    made = filmed_env(env, episodes, seed, max_steps)
    device = next((parameter.device for actor in actors.values() for parameter in actor.parameters()), made.device)
    players, generator = Players(actors, deterministic), torch.Generator(device).manual_seed(seed)
    players.begin(episodes, device)

    def act(now):
        observation = {name: value.to(device) for name, value in now.observation.items()}
        masks = {name: {kind: mask.to(device) for kind, mask in kinds.items()} for name, kinds in now.masks.items()}
        return {name: action.cpu() for name, action in players.actions(observation, masks, generator).items()}

    try:
        pictures, returns = made.film(_keeper(width)), torch.zeros(episodes)
        for running, moved in episode_steps(made, act, seed):
            gain = torch.stack([reward.mean(-1) for reward in moved.reward.values()]).mean(0)
            returns += torch.where(running, gain, 0.0)
            players.forget(moved)
        return Film(pictures, returns.tolist(), float(made.metadata.get("render_fps") or FPS))
    finally:
        made.close()


def _keeper(width: int) -> Callable[[Any], Image.Image]:
    """A function from what `render` gave to a small picture. Raises UserError for what is none."""

    def keep(drawn: Any) -> Image.Image:
        if not isinstance(drawn, np.ndarray) or drawn.ndim != 3 or drawn.shape[-1] != 3 or drawn.dtype != np.uint8:
            what = f"{drawn.dtype} {list(drawn.shape)}" if isinstance(drawn, np.ndarray) else type(drawn).__name__
            raise UserError(f"env: cannot be drawn, its render() gives {what} instead of a picture, uint8 [H, W, 3]")
        picture = Image.fromarray(drawn)
        if picture.width > width:
            picture = picture.resize((width, max(1, round(picture.height * width / picture.width))))
        return picture.quantize(256, dither=Image.Dither.NONE)

    return keep
