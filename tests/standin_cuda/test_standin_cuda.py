"""What a GPU would run, on a stand-in for one: tensors that say they are on `cuda:0` and lie in the CPU's memory.

Torch asks once in a process what devices there are, so that each file of cases runs in a process of its own:
python -m tests.standin_cuda tests/standin_cuda/cases_standin.py
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents.policies.policy import Policy
from marl.checkpoints.resume import resumed
from marl.config import compose
from marl.launch import build
from tests.fixtures.sources import ROOT
from tests.standin_cuda import library

# Files, and how many cases pass at least.
CASES = {"cases_standin": 29, "cases_algorithms": 15, "cases_settings": 26, "cases_tasks": 11, "cases_graphs": 12}
CASES |= {"cases_gradients": 6}
TINY = ["env.num_envs=4", "env.fast=off", "algo.rollout_steps=10", "algo.minibatch_size=20", "frames=80"]
TINY += ["env.max_steps=15", "task.eval_episodes=3", "trainer.progress=off", "logger=csv"]

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch has the code of GPUs itself"),
    pytest.mark.skipif(library.compiler() is None, reason="needs a C++ compiler"),
]


def test_every_file_of_cases_runs() -> None:
    assert {path.stem for path in Path(__file__).parent.glob("cases_*.py")} == CASES.keys()


def on_the_standin(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.standin_cuda", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def test_what_a_gpu_wrote_is_read_without_one(tmp_path: Path) -> None:
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.pt"
    where = [f"hydra.run.dir={run}", "device=cuda"]
    result = on_the_standin("run", "scripts/train.py", *TINY, *where, "trainer.max_iterations=1")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    with pytest.raises(RuntimeError, match="CUDA"):  # as torch reads it, its tensors are a GPU's
        torch.load(checkpoint, weights_only=True)
    policy = Policy.load(run)
    assert policy.act(torch.zeros(2, 4, 16)).shape == (2, 4, 2)
    config = compose.check(compose.compose([f"resume={run}", "device=cpu", "trainer.max_iterations=2"]))
    trainer, content = build.build_trainer(config), resumed(config, run)
    summary = trainer.fit(task := build.build_task(config), run, resume=content, **build.build_setup(config))
    assert summary["frames"] == 80 and task.device.type == "cpu"


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    result = on_the_standin(f"tests/standin_cuda/{name}.py", "-q", "-x")
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= CASES[name] and "skipped" not in result.stdout
