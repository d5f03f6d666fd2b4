"""Files of an earlier version (tests/old_files) load and continue, with the numbers which it came to itself."""

import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agents.policies.policy import Policy
from marl.callbacks.early_stopping import EarlyStopping
from marl.checkpoints import checkpoint_file
from marl.config.saved_config import read_config

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "tests" / "old_files"
EXPECTED = json.loads((FILES / "expected.json").read_text())
TENSORS = load_file(FILES / "expected.safetensors")
# Bitwise identical on the machine that wrote them; other processors add up in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def command(tmp_path: Path, monkeypatch) -> Callable[..., None]:
    """`command("train", "resume=run")` runs scripts/train.py among copies of the old files."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "scripts")

    def run(name: str, *arguments: str) -> None:
        path = ROOT / "scripts" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        runpy.run_path(str(path), run_name="__main__")

    environment = dict(os.environ)
    yield run
    os.environ.clear()
    os.environ.update(environment)


def expect(run: str) -> dict:
    """Compare a continued run with what the earlier version made of it; returns its checkpoint."""
    content, expected = checkpoint_file.load(Path(run) / "checkpoints" / "last.pt"), EXPECTED[run]
    assert content["iteration"] == expected["iteration"] and content["stop_reason"] == expected["stopped"]
    assert [float(group["lr"]) for group in content["optimizer"]["param_groups"]] == pytest.approx(expected["lr"])
    states = [state for state in content["callbacks"].values() if state]
    assert states == [pytest.approx(state) for state in expected["callbacks"]]
    named = {key.removeprefix(f"{run}/"): value for key, value in TENSORS.items() if key.startswith(f"{run}/")}
    assert content["loss"].keys() == named.keys()
    for name, value in content["loss"].items():
        torch.testing.assert_close(value, named[name], **CLOSE, msg=lambda why, name=name: f"{run} {name}: {why}")
    return content


@pytest.mark.parametrize("run", ["balance", "memory", "tag", "digits"])
def test_a_stopped_run_is_continued(command, run: str, capsys) -> None:
    stopped = checkpoint_file.load(Path(run) / "checkpoints" / "last.pt")
    command("train", f"resume={run}")
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("resuming after iteration 3")
    assert lines[start + 1] == "configuration"  # of which nothing is said to have changed
    content = expect(run)
    rows = (Path(run) / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["iteration", *map(str, range(1, content["iteration"] + 1))]
    assert stopped["config"] == {**content["config"], "paths": stopped["config"]["paths"]}
    evaluation = EXPECTED[run].get("evaluation")
    if evaluation:
        command("evaluate", f"ckpt={run}")
        figures = json.loads((Path(run) / "checkpoints" / "evaluation.json").read_text())
        if "episode_return" in evaluation:
            assert figures["episode_return"]["mean"] == pytest.approx(evaluation["episode_return"], rel=1e-4)
        else:
            assert {key: figures[key] for key in evaluation} == pytest.approx(evaluation, rel=1e-4)


def test_the_state_of_a_callback_is_there() -> None:
    saved = checkpoint_file.load(FILES / "balance" / "checkpoints" / "last.pt")["callbacks"]
    name = f"{EarlyStopping.__module__}.{EarlyStopping.__qualname__}"
    assert saved[name] == {"best": pytest.approx(-1.4419199), "waited": 2}  # and the run stops when 3 have been added


def test_a_sweep_is_continued(command, capsys) -> None:
    record = Path("sweep/0/job.json").read_bytes()
    command("train", "-m", "experiment=threshold", "seed=0,1,2", "epochs=60", "logger=csv", "hydra.sweep.dir=sweep")
    assert f"continuing {Path('sweep').resolve()}: 1 of 3 jobs are done" in capsys.readouterr().out
    assert Path("sweep/0/job.json").read_bytes() == record
    assert "resuming after iteration 8" in Path("sweep/1/output.log").read_text()
    for job in ("sweep/1", "sweep/2"):
        expect(job)


def test_a_study_is_continued(command, capsys) -> None:
    pytest.importorskip("optuna", reason="needs pip install -e '.[tune]'")
    command("tune", "study=quick.yaml", "out=tuning", "confirm=false", "seed=1")
    printed = capsys.readouterr().out
    assert "continuing" in printed and "1 of 2 trials are done" in printed
    expect("tuning/trials/2")
    interrupted, repeated = (read_config(Path(f"tuning/trials/{n}/config.yaml")) for n in (1, 2))
    assert interrupted["optimizer"] == repeated["optimizer"]


@pytest.mark.parametrize("name", ["policy_balance", "policy_memory"])
def test_a_policy_file_acts_as_it_did(name: str) -> None:
    policy = Policy.load(FILES / name / "policy.safetensors")
    (group,) = policy.spec.groups.values()
    shape = (3, group.n_agents, group.observation_size)
    observation = torch.linspace(-1, 1, 3 * shape[1] * shape[2]).reshape(shape)
    action, memory = policy.act(observation, memory=policy.memory(3))
    torch.testing.assert_close(action, TENSORS[f"{name}/action"], **CLOSE)
    for value in memory.values():
        torch.testing.assert_close(value, TENSORS[f"{name}/memory"], **CLOSE)


def test_a_policy_file_is_played(command) -> None:
    command("replay", "ckpt=policy_balance", "episodes=1", "formats=[png]", "out=played")
    assert Path("played/replay.safetensors").stat().st_size > 10_000 and list(Path("played").glob("*.png"))
