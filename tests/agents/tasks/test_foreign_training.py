"""Training in environments that cannot be saved: it learns, resumes bitwise equal, its policy acts without them."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from agents.policies.policy import Policy
from marl.checkpoints import checkpoint_file
from marl.config import compose
from marl.launch import build

ENVS = {"torchrl": ["env=torchrl"], "gymnasium_vector": ["env=gymnasium_vector", "env.id=CartPole-v0"]}
CARTPOLE = [
    "algo=ippo", "env.num_envs=8", "env.max_steps=200", "env.restart_every=300", "network.hidden=[32]",
    "algo.rollout_steps=64", "algo.minibatch_size=128", "optimizer.lr=3e-3", "trainer.progress=off",
    "task.eval_episodes=8", "frames=5120", "scheduler=constant",
]  # fmt: skip


def train(folder: Path, *overrides: str, resume: Path | None = None) -> dict:
    config = compose.check(compose.compose([*CARTPOLE, *overrides]))
    trainer, task = build.build_trainer(config), build.build_task(config)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")
    trainer.fit(task, folder, **build.build_setup(config), resume=resume)
    return checkpoint_file.load(folder / "checkpoints" / "last.pt")


@pytest.mark.parametrize("env", ENVS.values(), ids=ENVS)
def test_cartpole_is_learnt_and_resumed_to_the_same_bits(tmp_path, env):
    whole = train(tmp_path / "whole", *env, "trainer.evaluate_every=0")
    assert whole["evaluation"]["episode_return"] > 45  # uniform actions: 22
    train(tmp_path / "parts", *env, "trainer.evaluate_every=0", "trainer.max_iterations=5")
    last = tmp_path / "parts" / "checkpoints" / "last.pt"
    taped = checkpoint_file.load(last)["processes"][0]["task"]["rollout"]["env"]["actions/agents"]
    assert 0 < len(taped) < 300
    rest = train(tmp_path / "parts", *env, "trainer.evaluate_every=0", resume=last)
    assert all(torch.equal(rest["loss"][key], value) for key, value in whole["loss"].items())
    assert rest["evaluation"] == whole["evaluation"]
    action = Policy.load(tmp_path / "whole").act(torch.zeros(5, 1, 4))
    assert action.shape == (5, 1, 1) and action.dtype == torch.int64
