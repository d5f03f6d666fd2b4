"""What a GPU would run, on a stand-in for one: tensors that say they are on `cuda:0` and lie in the CPU's memory.

Torch asks once in a process what devices there are, so that the cases run in a process of their own:
python -m tests.standin_cuda tests/standin_cuda/cases_standin.py
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from agents.policies.policy import Policy
from marl.checkpoints.resume import resumed
from marl.config import compose
from marl.launch import build
from tests.fixtures.sources import ROOT
from tests.standin_cuda import library

# Files, and how many cases pass at least.
CASES = {
    "cases_standin": 32,
    "cases_algorithms": 15,
    "cases_settings": 26,
    "cases_tasks": 11,
    "cases_graphs": 24,
    "cases_rollouts": 14,
    "cases_processes": 6,
    "cases_gradients": 6,
}
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


def test_the_check_for_a_gpu_runs_to_its_end(tmp_path: Path) -> None:
    """The command whose first real minute on a card should not be spent on its own mistakes."""
    page, figures = tmp_path / "page.md", tmp_path / "check.json"
    page.write_text("<!-- gpu check: begin -->\n<!-- gpu check: end -->\n")
    where = ["--minutes", "60", "--json", str(figures), "--write", str(page)]  # no item is left where the CPU is busy
    result = on_the_standin("run", "scripts/benchmark.py", "--device", "cuda", "--check", "--quick", *where)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-3000:]
    found = {name: part["rows"] for name, part in json.loads(figures.read_text())["parts"].items()}
    rows = {row["key"]: row for part in found.values() for row in part}
    assert list(found) == ["card", "kernels", "gradients", "resume", "capture", "learn", "figures", "start"]
    assert all(found.values()) and not [row for row in rows.values() if row.get("outcome") in ("failed", "left out")]
    for key in ("kernels/mpe/simple_spread", "resume/mappo", "capture/mappo", "capture/mappo, memory", "learn/balance"):
        assert rows[key]["outcome"] == "passed"
    assert rows["capture/mappo, memory"]["replays"]["rollouts"] > 0 < rows["capture/mappo"]["replays"]["updates"]
    assert all(
        rows[f"{what}/8"]["share_of_limit_%"] > 0 for what in ("simulation", "collection", "update", "end_to_end")
    )
    assert rows["simulation/8"]["path"] == "kernel" and rows["start/simple_spread/first"]["value"] > 0
    assert "| simulation, 8 environments |" in page.read_text() and "stand-in" in page.read_text()


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[dict[str, list[str]], str]:
    """{file: what became of each of its cases}, and what was printed; all run in one process, which starts once."""
    report, folder = tmp_path_factory.mktemp("cases") / "report.xml", Path(__file__).parent
    files = [str(folder.relative_to(ROOT) / f"{name}.py") for name in CASES]
    result = on_the_standin(*files, "-q", f"--junitxml={report}")
    assert result.returncode in (0, 1), result.stdout[-6000:] + result.stderr[-2000:]
    outcomes: dict[str, list[str]] = {name: [] for name in CASES}
    for case in ElementTree.parse(report).iter("testcase"):
        outcomes[case.get("classname").rpartition(".")[2]].append(" ".join(part.tag for part in case) or "passed")
    return outcomes, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.parametrize("name", CASES)
def test_cases(
    name: str, ran: tuple[dict[str, list[str]], str], record_property: Callable[[str, object], None]
) -> None:
    outcomes, printed = ran
    assert {*outcomes[name]} == {"passed"}, printed
    assert len(outcomes[name]) >= CASES[name]
    record_property("cases on the stand-in GPU", f"{name.removeprefix('cases_')} {len(outcomes[name])}")
