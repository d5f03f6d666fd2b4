"""Ways to run the scripts: in this process (fast), or as a user does."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.fixtures.warm_shell import WarmShell

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """`script("train")` is the module scripts/train.py."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def shell() -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """`shell(directory, "train", "seed=1")` runs scripts/train.py there, as a user does.

    The first command of each script starts a new Python; later ones are forked from a process that has imported all.
    `shell.at_once(directory, "train", ["seed=1"], ["seed=2"])` runs several of them in as many processes at once.
    """
    warm, seen = WarmShell(), set()

    def environment() -> dict[str, str]:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        variables = {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "COLUMNS": "120"}
        variables.pop("HYDRA_FULL_ERROR", None)
        return variables

    def run(directory: Path, name: str, *arguments: str) -> subprocess.CompletedProcess:
        if name in seen:
            return warm.run(directory, name, *arguments, environment=environment())
        seen.add(name)
        command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
        return subprocess.run(command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=240)

    def run_at_once(directory: Path, name: str, *several: list[str]) -> list[subprocess.CompletedProcess]:
        return warm.run_at_once(directory, name, *several, environment=environment())

    run.at_once = run_at_once
    yield run
    warm.close()
