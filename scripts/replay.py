"""Shows what agents do: python scripts/replay.py ckpt=RUN_DIR [option=value …]

  ckpt=RUN_DIR|FILE    a run directory, a checkpoint, a policy.safetensors or zoo/NAME: plays and records episodes
  recording=FILE       instead of ckpt: a recording made before (replay.safetensors, or a run's replays/*.safetensors)
  formats=[html]       what to draw, any of: html (a player in one file), gif, mp4, png (four moments side by side)
  episodes=4           episodes to record; gif, mp4 and png show the one named by `episode`
  episode=0            number of the episode that gif, mp4 and png show
  seed=0               seed of the episodes
  deterministic=true   true: the policy's mode | false: samples, as in training
  max_steps=null       time limit of the episodes, steps; null: that of the run
  which=last           last | best: which checkpoint of a run directory
  width=480            width of gif and mp4 in pixels
  speed=2              seconds of the simulation per second of gif and mp4
  out=null             folder to write to; null: replay/ in the run directory, or beside the recording

The recording is written too (replay.safetensors): the simulator's states, small, and drawn again at any time.
Environments of gymnasium and PettingZoo draw themselves (render mode rgb_array): there html shows all episodes as
GIFs, and there is no recording.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from agents.evaluation.episode_replays import drawable, film_policy, record_policy, strip
from agents.evaluation.filmed_episodes import can_film
from agents.policies.policy import Policy
from envs.rendering.animation import film_page, gif, mp4, quantized
from envs.rendering.html_page import page, write
from envs.rendering.recording import Recording
from envs.rendering.scene import image
from envs.rendering.web_frames import web_frames
from marl.config import options
from marl.core import run_directory
from marl.core.errors import UserError
from marl.launch import cli


@dataclass
class Options:
    """The options above."""

    ckpt: str | None = None
    recording: str | None = None
    formats: list[Literal["html", "gif", "mp4", "png"]] = field(default_factory=lambda: ["html"])
    episodes: Annotated[int, Field(ge=1)] = 4
    episode: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 0
    deterministic: bool = True
    max_steps: Annotated[int, Field(ge=1)] | None = None
    which: Literal["last", "best"] = "last"
    width: Annotated[int, Field(ge=16)] = 480
    speed: Annotated[float, Field(gt=0)] = 2.0
    out: str | None = None


def run(chosen: Options) -> Path:
    """Record or load, draw, say where; returns the folder. Raises UserError."""
    if (chosen.ckpt is None) == (chosen.recording is None):
        raise UserError("ckpt=…: a run directory or checkpoint is needed, or recording=FILE instead of it")
    if chosen.recording:
        recording = Recording.load(chosen.recording)
        folder = Path(chosen.out or Path(chosen.recording).parent)
    else:
        folder = Path(chosen.out or run_directory.home_of(chosen.ckpt) / "replay")
        policy = Policy.load(chosen.ckpt, chosen.which)
        if can_film(drawable(policy.metadata.get("env"))):
            return show_film(policy, chosen, folder)
        recording = record_policy(policy, chosen.episodes, chosen.seed, chosen.deterministic, chosen.max_steps)
        recording.save(folder / "replay.safetensors")
        say(folder / "replay.safetensors")
    check_episode(chosen, recording.episodes)
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(chosen.recording).stem if chosen.recording else "replay"
    for kind in chosen.formats:
        target = folder / f"{name}.{kind}"
        if kind == "html":
            write(target, page("player", web_frames(recording)))
        elif kind == "png":
            Image.fromarray(strip(recording, chosen.episode)).save(target, optimize=True)
        elif kind == "gif":
            gif(target, quantized(images(recording, chosen)), recording.dt / chosen.speed)
        else:
            mp4(target, images(recording, chosen), chosen.speed / recording.dt)
        say(target)
    return folder


def check_episode(chosen: Options, episodes: int) -> None:
    """Raises UserError where there is no such episode."""
    if chosen.episode >= episodes:
        raise UserError(f"episode={chosen.episode}: the recording has {episodes} episodes, from 0 on")


def show_film(policy: Policy, chosen: Options, folder: Path) -> Path:
    """The same of an environment that draws its own pictures: there is no recording beside them."""
    check_episode(chosen, chosen.episodes)
    seeded = chosen.episodes, chosen.seed, chosen.deterministic, chosen.max_steps
    shown = film_policy(policy, *seeded, chosen.width)
    pictures, seconds = shown.pictures[chosen.episode], 1 / shown.fps / chosen.speed
    folder.mkdir(parents=True, exist_ok=True)
    for kind in chosen.formats:
        target = folder / f"replay.{kind}"
        if kind == "html":
            captions = [
                f"episode {e}: {len(each) - 1} steps, return {shown.returns[e]:.4g}"
                for e, each in enumerate(shown.pictures)
            ]
            write(target, film_page("replay", list(zip(captions, shown.pictures, strict=True)), seconds))
        elif kind == "png":
            Image.fromarray(shown.strip(chosen.episode)).save(target, optimize=True)
        elif kind == "gif":
            gif(target, pictures, seconds)
        else:
            mp4(target, (np.asarray(picture.convert("RGB")) for picture in pictures), 1 / seconds)
        say(target)
    return folder


def images(recording: Recording, chosen: Options) -> Iterator[np.ndarray]:
    """The frames of the chosen episode, uint8 [H, W, 3]."""
    return (image(drawn, chosen.width) for drawn in recording.scenes(chosen.episode))


def say(path: Path) -> None:
    """Tell what was written."""
    print(f"{path} ({path.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    cli.main(__doc__, lambda arguments: run(options.parse(Options, arguments)))
