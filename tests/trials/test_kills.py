"""Training survives SIGKILL at random moments, also within the writing of a checkpoint, bitwise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trials import kills

# Kills of each case; python tests/trials/kills.py does 20 each.
CASES = {"balance, kernel": 3, "balance, eager": 1, "navigation, lidar": 1, "balance, curriculum": 1, "digits": 3}
CASES |= {"navigation, QMIX": 1, "navigation, MASAC": 1, "navigation, MASAC with a memory": 1}


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict:
    """What `python tests/trials/kills.py` reports; a process of its own, since it forks."""
    folder = tmp_path_factory.mktemp("kills")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    results = {}
    command = [sys.executable, kills.__file__, "--iterations", "8", "--json", str(folder / "kills.json")]
    for name, count in CASES.items():
        command += ["--case", name, str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode in (0, 1), done.stderr
    results |= json.loads((folder / "kills.json").read_text())
    return results


@pytest.mark.parametrize("name", CASES)
def test_a_killed_run_ends_in_the_same_bits(name: str, figures: dict) -> None:
    assert figures[name]["differences"] == []
    assert figures[name]["kills"] >= 1 and figures[name]["resumed"] >= 1


def test_the_comparison_sees_a_single_bit() -> None:
    a = {"w": torch.tensor([1.0, float("nan")]), "n": [1, {"x": 0.1}]}
    b = {"w": torch.tensor([1.0, float("nan")]), "n": [1, {"x": 0.1}]}
    assert kills.same(a, b)
    b["w"].view(torch.int32)[0] += 1
    assert not kills.same(a, b)
    assert not kills.same({"x": 0.1}, {"x": 0.1 + 2e-17 + 1e-16}) and not kills.same(a, {**a, "n": [1, {"x": 0.2}]})


def test_the_comparison_sees_gaps_and_doubles(tmp_path: Path) -> None:
    for name, steps in (("a", [1, 2, 3]), ("b", [1, 2, 2, 3]), ("c", [1, 3])):
        (tmp_path / name).mkdir()
        lines = ["iteration,loss,seconds", *(f"{step},0.5,{name}" for step in steps)]
        (tmp_path / name / "metrics.csv").write_text("\n".join(lines) + "\n")
    a, b, c = (kills.rows(tmp_path / name) for name in "abc")
    assert len(b) == 4 and a != b and a != c and a[0] == b[0] == {"iteration": "1", "loss": "0.5"}
