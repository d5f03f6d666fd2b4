"""What a GPU would run, on a stand-in for one: tensors that say they are on `cuda:0` and lie in the CPU's memory.

Torch asks once in a process what devices there are, so that each file of cases runs in a process of its own:
python -m tests.standin_cuda tests/standin_cuda/cases_standin.py
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fixtures.sources import ROOT
from tests.standin_cuda import library

CASES = {"cases_standin": 28}  # files, and how many cases pass at least

pytestmark = [
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch has the code of GPUs itself"),
    pytest.mark.skipif(library.compiler() is None, reason="needs a C++ compiler"),
]


def test_every_file_of_cases_runs() -> None:
    assert {path.stem for path in Path(__file__).parent.glob("cases_*.py")} == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    command = [sys.executable, "-m", "tests.standin_cuda", f"tests/standin_cuda/{name}.py", "-q", "-x"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) >= CASES[name] and "skipped" not in result.stdout
