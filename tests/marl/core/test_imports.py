"""Which checkout a program is of: the packages' own, or, where these were installed as copies, the script's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from marl.core import imports
from marl.core.errors import UserError
from marl.core.imports import CHECKOUT


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """The packages as `pip install .` leaves them: without conf/."""
    for package in ("marl", "agents", "envs"):
        shutil.copytree(CHECKOUT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def start(script: str, *arguments: str, copies: Path) -> subprocess.CompletedProcess:
    """A script of this checkout with the packages of the copies."""
    command = [sys.executable, str(CHECKOUT / "scripts" / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(copies)}
    return subprocess.run(command, cwd=copies, env=environment, capture_output=True, text=True)


def test_packages_that_are_copies_read_what_lies_beside_the_script(copies: Path) -> None:
    done = start("train.py", "algo=ippo", "--cfg", "job", copies=copies)
    assert done.returncode == 0, done.stderr
    assert "critic: local" in done.stdout
    listed = start("zoo.py", "list", copies=copies)
    assert listed.returncode == 0 and "navigation" in listed.stdout, listed.stderr


def test_copies_of_other_code_are_refused(copies: Path) -> None:
    changed = copies / "agents" / "tasks" / "on_policy.py"
    changed.write_text(changed.read_text() + "\n# later\n")
    done = start("train.py", "algo=ippo", copies=copies)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: {changed}: is not what {CHECKOUT}") and "Traceback" not in done.stderr
    assert not (copies / "outputs").exists()


def test_a_checkout_is_found_from_any_file_in_it(tmp_path: Path) -> None:
    assert imports.checkout_of(str(CHECKOUT / "docs" / "scripts" / "figures.py")) == CHECKOUT
    assert imports.checkout_of(str(tmp_path / "scripts" / "train.py")) is None
    assert imports.own_checkout(CHECKOUT) == CHECKOUT


def test_without_a_checkout_a_sentence_says_so(tmp_path: Path) -> None:
    imports.require_checkout()
    with pytest.raises(UserError, match=r"conf: is not there\. .* `pip install -e \."):
        imports.require_checkout(tmp_path, tmp_path)
