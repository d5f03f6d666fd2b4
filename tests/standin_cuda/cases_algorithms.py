"""Every algorithm on the stand-in: rollouts and updates that do not wait, checkpoints, bitwise resume, policies."""

import math
import shutil

import pytest
import torch

from agents.policies.policy import Policy
from marl.checkpoints import checkpoint_file
from tests.standin_cuda.runs import REPLAYED, cut_back, resume, same, strict, train

__all__ = ["strict"]
CHOICES = ["env.continuous_actions=false"]
ALGORITHMS = {
    "mappo": [],
    "ippo": [],
    "pqn": CHOICES,
    "pqn_vdn": CHOICES,
    "iql": [*CHOICES, *REPLAYED],
    "vdn": [*CHOICES, *REPLAYED],
    "qmix": [*CHOICES, *REPLAYED, "env.global_state=true"],
    "iddpg": REPLAYED,
    "maddpg": REPLAYED,
    "matd3": [*REPLAYED, "algo.n_step=2"],
    "isac": REPLAYED,
    "masac": [*REPLAYED, "algo.priority=0.6"],
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_trains_saves_resumes_and_plays(tmp_path, strict, name) -> None:
    whole, half = tmp_path / "whole", tmp_path / "half"
    _, task, summary = train(whole, f"algo={name}", *ALGORITHMS[name], "trainer.keep_every=2")
    assert summary["frames"] == 48 and all(p.device.type == "cuda" for p in task.loss.parameters())
    assert math.isfinite(task.evaluate()["episode_return"])
    resume(cut_back(shutil.copytree(whole, half), 2))
    one, other = (checkpoint_file.load(folder / "checkpoints" / "last.pt", "cuda") for folder in (whole, half))
    parts = ("loss", "optimizer", "schedule", "processes")
    apart = [key for part in parts for key in same(one[part], other[part], part)]
    assert one["iteration"] == other["iteration"] == 3 and not [key for key in apart if "seconds" not in key]
    on_gpu, on_cpu = Policy.load(whole, device="cuda"), Policy.load(whole)
    observation, _ = task.eval_env.reset(0)
    actions = on_gpu.act(observation)
    for group, action in on_cpu.act({key: value.cpu() for key, value in observation.items()}).items():
        assert actions[group].is_cuda
        torch.testing.assert_close(actions[group].cpu(), action)


def test_a_run_on_the_gpu_learns_what_the_same_run_on_a_cpu_learns(tmp_path) -> None:
    """The stand-in draws what a CPU draws: whatever is left of a difference is the framework's."""
    weights = {}
    for device in ("cuda", "cpu"):
        _, task, _ = train(tmp_path / device, f"device={device}", "optimizer.lr=0.01", "env.num_envs=8", "frames=96")
        weights[device] = [p.detach().cpu() for p in task.loss.parameters()]
    torch.testing.assert_close(weights["cuda"], weights["cpu"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("there", ["cpu", "cuda"])
def test_a_run_goes_on_where_the_other_device_is(tmp_path, there) -> None:
    here = {"cpu": "cuda", "cuda": "cpu"}[there]
    for name in ("mappo", "masac"):
        folder = tmp_path / name
        train(folder, f"algo={name}", *ALGORITHMS[name], f"device={there}", "trainer.max_iterations=2")
        _, task, summary = resume(folder, f"device={here}", "trainer.max_iterations=3")
        assert summary["frames"] == 48 and next(task.loss.parameters()).device.type == here
