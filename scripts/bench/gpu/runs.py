"""Whole runs on a device, in a folder of their own, and what their last checkpoints hold, compared."""

import hashlib
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from bench.timing import Clock
from marl.callbacks.base import Callback
from marl.checkpoints import checkpoint_file
from marl.checkpoints.resume import resumed
from marl.config import compose
from marl.engine.run_view import RunView
from marl.launch import build

QUIET = ["trainer.progress=off", "frames=1_000_000_000", "task.eval_episodes=2", "trainer.evaluate_every=0"]
STATE = ("loss", "optimizer", "schedule", "processes")  # of a checkpoint: all that decides the next iteration
OUT_OF_TIME = "its share of the time is over"


def length(iterations: int) -> list[str]:
    """Overrides for so many iterations, and a checkpoint behind the last one."""
    return [f"trainer.max_iterations={iterations}", f"trainer.checkpoint_every={iterations}"]


class Watch(Callback):
    """Keeps the seconds of each iteration's stages; ends the run when the clock is over."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.collect: list[float] = []
        self.update: list[float] = []

    def on_iteration(self, trainer: RunView, record: dict) -> None:
        self.collect.append(record["collect_seconds"])
        self.update.append(record["update_seconds"])
        if self.clock.over():
            trainer.stop(OUT_OF_TIME)


def fit(folder: Path, overrides: Sequence[str], callbacks: Sequence[Callback] = ()) -> tuple:
    """(trainer, task, summary) of a run in `folder`; with `resume=…` among the overrides it goes on there."""
    folder.mkdir(parents=True, exist_ok=True)
    config = compose.check(compose.compose(list(overrides)))
    trainer = build.build_trainer(config)
    content = resumed(config, folder)
    task = build.build_task(config)
    setup = build.build_setup(config)
    setup |= {"loggers": [], "callbacks": [*setup["callbacks"], *callbacks]}
    if content is None:
        OmegaConf.save(config, folder / "config.yaml")
    return trainer, task, trainer.fit(task, folder, resume=content, **setup)


def cut_back(whole: Path, folder: Path, iteration: int) -> Path:
    """A copy of a run as it was after an iteration whose checkpoint was kept (`trainer.keep_every`)."""
    shutil.copytree(whole, folder)
    for path in (folder / "checkpoints").iterdir():
        if path.is_file() and path.stem != f"iteration_{iteration}":
            path.unlink()
    (folder / "checkpoints" / f"iteration_{iteration}.pt").rename(folder / "checkpoints" / "last.pt")
    return folder


def content(folder: Path) -> dict[str, object]:
    """{path: tensor or plain value} of what decides the next iteration in a run's last checkpoint, without clocks."""
    state = checkpoint_file.load(folder / "checkpoints" / "last.pt")
    return {path: leaf for name in STATE for path, leaf in _leaves(state[name], name) if "seconds" not in path}


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _leaves(value[key], f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{path}/{number}")
    else:
        yield path, value


def digest(state: dict[str, object]) -> str:
    """One name for such a content: equal where it is bitwise identical."""
    whole = hashlib.sha256()
    for path, value in sorted(state.items()):
        whole.update(path.encode())
        bits = value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if isinstance(value, Tensor) else b""
        whole.update(bits or repr(value).encode())
    return whole.hexdigest()[:16]


def difference(one: dict[str, object], other: dict[str, object]) -> str:
    """Where two contents differ and by how much, in one sentence; "" where they are bitwise identical."""
    if digest(one) == digest(other):
        return ""
    if one.keys() != other.keys():
        return f"they hold other things: {', '.join(sorted(one.keys() ^ other.keys())[:3])}"
    apart = {path: _apart(value, other[path]) for path, value in one.items()}
    apart = {path: far for path, far in apart.items() if far}
    worst = max(apart, key=apart.get, default="")
    return f"{len(apart)} of {len(one)} parts differ, by {apart.get(worst, 0.0):.0e} at most ({worst})"


def _apart(a: object, b: object) -> float:
    """Largest difference, relative to 1 or the number's size; of what is no number, infinite."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return 0.0 if repr(a) == repr(b) else math.inf
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    same = (a == b) | ((a != a) & (b != b))
    if bool(same.all()):
        return 0.0
    if not a.is_floating_point():
        return math.inf
    far = ((a.double() - b.double()).abs() / b.double().abs().clamp(min=1))[~same]
    return math.inf if bool(far.isnan().any()) else float(far.max())
