"""Whole runs on the stand-in, in which no rollout and no update may wait for the device."""

from collections.abc import Iterator
from functools import wraps
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from agents.algorithms.happo import SequentialUpdate
from agents.collection.collector import Collector
from agents.tasks.off_policy import OffPolicy
from agents.tasks.on_policy import OnPolicy
from envs.kernel.verification.recheck import Recheck
from envs.vmas.kernel_stepper import KernelStepper
from envs.vmas.world import VmasWorld
from marl.capture.cuda_graph import DeviceGraph
from marl.checkpoints import checkpoint_file
from marl.checkpoints.resume import resumed
from marl.config import compose
from marl.engine.updater import Updater
from marl.launch import build
from tests.standin_cuda.standin import watched

TINY = [
    "device=cuda",
    "env.num_envs=4",
    "env.max_steps=5",
    "env.fast=off",
    "algo.rollout_steps=4",
    "algo.minibatch_size=8",
    "frames=48",
    "task.eval_episodes=2",
    "trainer.progress=off",
    "trainer.evaluate_every=2",
    "trainer.checkpoint_every=1",
    "logger=csv",
]
REPLAYED = ["algo.updates=2", "algo.buffer_frames=48"]


def watch(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, on: bool = True) -> None:
    """Within a method of a class nothing may wait for the device; on=False: it may, in the midst of others."""
    method = getattr(owner, name)

    @wraps(method)
    def inside(*args, **kwargs):
        with watched(on):
            return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, inside)


def watch_each(monkeypatch: pytest.MonkeyPatch, owner: type) -> None:
    """The same while a task makes each of its minibatches."""
    method = owner.batches

    @wraps(method)
    def inside(*args, **kwargs) -> Iterator:
        batches = iter(method(*args, **kwargs))
        while True:
            with watched():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    monkeypatch.setattr(owner, "batches", inside)


@pytest.fixture
def strict(monkeypatch) -> None:
    """Rollouts and updates are watched; within them VMAS's own simulator, which waits 40 times per step, is not."""
    watch(monkeypatch, Collector, "collect")
    watch(monkeypatch, VmasWorld, "step", on=False)
    watch(
        monkeypatch, KernelStepper, "_load", on=False
    )  # a state of the simulator's is taken over: after resets and resumes
    watch(monkeypatch, Recheck, "in_run", on=False)  # in the 1st, 10th, 100th rollout
    watch(monkeypatch, DeviceGraph, "__init__", on=False)  # captures wait
    for owner, name in ((SequentialUpdate, "draw_orders"), (OnPolicy, "_is_far")):
        watch(monkeypatch, owner, name, on=False)  # once per iteration, and once per epoch
    for name in ("update", "flush"):
        watch(monkeypatch, Updater, name)
    for owner in (OnPolicy, OffPolicy):
        watch_each(monkeypatch, owner)
        watch(monkeypatch, owner, "observe")


def train(folder: Path, *overrides: str, sizes: list[str] = TINY) -> tuple:
    """(trainer, task, summary) of a run in `folder`, with its configuration beside it."""
    first = [o for o in overrides if o.split("=")[0] in ("env", "network", "algo", "experiment", "task")]
    config = compose.check(compose.compose([*first, *sizes, *(o for o in overrides if o not in first)]))
    trainer, task = build.build_trainer(config), build.build_task(config)
    folder.mkdir(parents=True, exist_ok=True)
    summary = trainer.fit(task, folder, **build.build_setup(config))
    OmegaConf.save(config, folder / "config.yaml")
    return trainer, task, summary


def cut_back(folder: Path, iteration: int) -> Path:
    """Let a run be as it was after an iteration whose checkpoint was kept (`trainer.keep_every`)."""
    for path in (folder / "checkpoints").iterdir():
        if path.is_file() and path.stem != f"iteration_{iteration}":
            path.unlink()
    (folder / "checkpoints" / f"iteration_{iteration}.pt").rename(folder / "checkpoints" / "last.pt")
    return folder


def resume(folder: Path, *overrides: str) -> tuple:
    """As `train`: the run goes on."""
    config = compose.check(compose.compose([f"resume={folder}", *overrides]))
    trainer, content = build.build_trainer(config), resumed(config, folder)
    task = build.build_task(config)
    return trainer, task, trainer.fit(task, folder, resume=content, **build.build_setup(config))


def same(a: object, b: object, where: str = "") -> Iterator[str]:
    """Where two nested states differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {*a, *b}:
            yield from same(a.get(key), b.get(key), f"{where}/{key}")
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for number, pair in enumerate(zip(a, b, strict=True)):
            yield from same(*pair, f"{where}/{number}")
    elif isinstance(a, torch.Tensor):
        if not (isinstance(b, torch.Tensor) and a.device == b.device and torch.equal(a.nan_to_num(), b.nan_to_num())):
            yield where
    elif a != b:
        yield where


def content(folder: Path) -> dict:
    """What a run's last checkpoint holds of its state."""
    state = checkpoint_file.load(folder / "checkpoints" / "last.pt", "cuda")
    return {key: state[key] for key in ("loss", "optimizer", "schedule", "processes")}


def difference(one: Path, other: Path) -> list[str]:
    """Where the last checkpoints of two runs differ."""
    return [where for where in same(content(one), content(other)) if "seconds" not in where]
