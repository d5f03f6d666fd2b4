"""A tiny finished run for tests of what works on run directories."""

from pathlib import Path

from omegaconf import OmegaConf

from marl import build, compose

TINY = [
    "env.num_envs=4",
    "env.fast=off",
    "algo.rollout_steps=10",
    "algo.minibatch_size=20",
    "frames=80",
    "env.max_steps=15",
    "task.eval_episodes=3",
    "trainer.progress=off",
    "trainer.evaluate_every=1",
]


def make_run(folder: Path, *overrides: str) -> Path:
    """Trains two iterations with `overrides` on top of TINY, in this process; returns the run directory `folder`."""
    config = compose.check(compose.compose([*TINY, *overrides]))
    trainer, task = build.build_trainer(config), build.build_task(config)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")
    trainer.fit(task, folder, **build.build_setup(config))
    return folder
