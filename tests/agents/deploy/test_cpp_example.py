"""The C++ program of the docs, built by CMake against the installed torch: it acts as `Policy.act` does."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.deploy.export import export
from agents.policies.policy import Policy
from tests.fixtures.runs import make_run

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "cpp"
STEPS = 20


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    if not shutil.which("cmake") or not shutil.which("c++"):
        pytest.skip("cmake and a C++ compiler build the example; one of them is not installed")
    build = tmp_path_factory.mktemp("cpp")
    libtorch = f"-DTORCH={torch.__path__[0]}"
    # -O0: what takes time here is torch's headers.
    commands = [["cmake", "-S", EXAMPLE, "-B", build, libtorch, "-DCMAKE_CXX_FLAGS=-O0"], ["cmake", "--build", build]]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "act"


def acted(program: Path, *arguments: object, lines: list[str]) -> subprocess.CompletedProcess:
    words = [str(program), *map(str, arguments)]
    return subprocess.run(words, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=120)


def line(observation: torch.Tensor) -> str:
    return " ".join(f"{number:.9g}" for number in observation.flatten().tolist())


def test_it_acts_as_the_policy_does(program: Path, tmp_path: Path) -> None:
    policy = Policy.load(ROOT / "docs" / "zoo" / "balance.safetensors")
    file, group = export(policy, "torchscript", tmp_path), policy.spec.groups["agents"]
    observations = torch.randn(STEPS, group.n_agents, group.observation_size, generator=torch.manual_seed(0))
    done = acted(program, file, group.n_agents, group.observation_size, lines=[line(o) for o in observations])
    assert done.returncode == 0, done.stderr
    actions = np.array([row.split() for row in done.stdout.splitlines()], float)
    assert np.abs(actions - policy.act(observations).flatten(1).numpy()).max() <= 1e-6


def test_it_carries_a_memory_and_forgets_it_between_episodes(program: Path, tmp_path: Path) -> None:
    policy = Policy.load(make_run(tmp_path / "run", "env=vmas/balance", "network=gru", "network.hidden=8"))
    file, group, memory = export(policy, "torchscript", tmp_path), policy.spec.groups["agents"], policy.memory(1)
    observations = torch.randn(STEPS, group.n_agents, group.observation_size, generator=torch.manual_seed(0))
    expected = []
    for observation in observations:
        action, memory = policy.act(observation[None], memory=memory)
        expected.append(action.flatten().numpy())
    lines = [line(o) for o in observations]
    done = acted(program, file, group.n_agents, group.observation_size, 8, lines=[*lines, "", *lines])
    assert done.returncode == 0, done.stderr
    actions = np.array([row.split() for row in done.stdout.splitlines()], float)
    assert np.abs(actions - np.array(expected + expected)).max() <= 1e-5


def test_a_line_of_another_length_is_refused(program: Path, tmp_path: Path) -> None:
    file = export(Policy.load(ROOT / "docs" / "zoo" / "balance.safetensors"), "torchscript", tmp_path)
    done = acted(program, file, 4, 16, lines=["1 2 3"])
    assert done.returncode == 1 and "a step has 64 numbers, this line 3" in done.stderr
