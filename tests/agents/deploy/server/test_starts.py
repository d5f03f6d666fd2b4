"""A server that is given no policy: one sentence that says what is wrong with the file, and exit code 2."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serving]'")

from agents.deploy.server.metrics import Metrics
from agents.deploy.server.settings import ServerSettings
from agents.deploy.server.versions import EXPORTED, Policies
from marl.checkpoints import checkpoint_file
from marl.core.errors import UserError
from tests.fixtures.serving import MLP, make_policy


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def good(folder: Path) -> bytes:
    """A policy's file, whole."""
    make_policy(folder / "good", MLP)
    return (folder / "good" / "policy.safetensors").read_bytes()


def described(folder: Path, change: Callable[[dict], None]) -> Path:
    """A policy file with a whole digest whose description was changed."""
    policy = make_policy(folder / "good", MLP)
    about = json.loads(json.dumps(dict(policy.metadata)))
    change(about)
    text = json.dumps({"format": 1, **about})
    checkpoint_file.save_weights(folder / "odd.safetensors", policy.state_dict(), {"policy": text})
    return folder / "odd.safetensors"


def weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor], missing: int = 0) -> Path:
    """A policy file with a whole digest whose weights were changed."""
    policy = make_policy(folder / "good", MLP)
    state = {name: change(value) for name, value in list(policy.state_dict().items())[missing:]}
    text = json.dumps({"format": 1, **policy.metadata})
    checkpoint_file.save_weights(folder / "odd.safetensors", state, {"policy": text})
    return folder / "odd.safetensors"


def checkpoint(folder: Path, state: dict) -> Path:
    checkpoint_file.save(folder / "odd.pt", state)
    return folder / "odd.pt"


def a_folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "run" / name).write_text("algo: {}\n")
    (folder / "run").mkdir(exist_ok=True)
    return folder / "run"


def torchs_own(folder: Path) -> Path:
    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "model.pt")
    return folder / "model.pt"


def a_circle(folder: Path) -> Path:
    os.symlink("circle", folder / "circle")
    return folder / "circle"


def set_low(about: dict) -> None:
    about["spec"]["groups"]["red"]["action"]["low"] = []


def set_choices(about: dict) -> None:
    about["spec"]["groups"]["blue"]["action"]["nvec"] = ["x"]


def set_size(about: dict) -> None:
    about["spec"]["groups"]["red"]["observation_size"] = 10**13


TEXT = b"This is a text.\n" * 100
KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such place": (lambda d: d / "none", "no checkpoint at "),
    "a text": (lambda d: written(d, "notes.txt", TEXT), "cannot be read: it is truncated, or not of this framework"),
    "an empty file": (lambda d: written(d, "empty", b""), "cannot be read: it is truncated, or not of this framework"),
    "a text as .safetensors": (lambda d: written(d, "a.safetensors", TEXT), "can't be read as a policy: "),
    "an empty .safetensors": (lambda d: written(d, "a.safetensors", b""), "can't be read as a policy: "),
    "a half": (lambda d: written(d, "a.safetensors", good(d)[:-500]), "can't be read as a policy: "),
    "a tenth": (lambda d: written(d, "a.safetensors", good(d)[: len(good(d)) // 10]), "can't be read as a policy: "),
    "other bytes": (lambda d: written(d, "a.safetensors", good(d)[:-4] + b"abcd"), "the file is damaged (its digest"),
    "an empty checkpoint": (lambda d: written(d, "last.pt", b""), "cannot be read: it is truncated, or not of this fr"),
    "a model of torch": (torchs_own, "cannot be read: it is truncated, or not of this framework"),
    "an empty folder": (a_folder, "no checkpoint at "),
    "a run without checkpoints": (lambda d: a_folder(d, "config.yaml", "metrics.csv"), "no checkpoint at "),
    "an export of another format": (lambda d: a_folder(d, "policy.onnx", "README.md"), "no checkpoint at "),
    "a circle of links": (a_circle, "no checkpoint at "),
    "not a policy's description": (lambda d: described(d, dict.clear), "holds weights only"),
    "no groups": (lambda d: described(d, lambda a: a["spec"].clear()), "its description lacks 'groups'"),
    "no spec": (lambda d: described(d, lambda a: a.update(spec=None)), "its description holds values of other kinds"),
    "a run of another kind": (lambda d: described(d, lambda a: a.update(run=3)), "its description's run is no mapping"),
    "an env of another kind": (lambda d: described(d, lambda a: a.update(env="x")), "description's env is no mapping"),
    "no bounds": (lambda d: described(d, set_low), "can't be served (RuntimeError: The size of tensor"),
    "odd choices": (lambda d: described(d, set_choices), "can't be served (ValueError: invalid literal for int()"),
    "too large": (lambda d: described(d, set_size), "can't be served (RuntimeError: "),
    "a part of the weights": (lambda d: weights(d, lambda w: w, missing=1), "its weights don't fit the networks"),
    "other weights": (lambda d: weights(d, lambda w: w[:1]), "its weights don't fit the networks"),
    "not a number": (
        lambda d: weights(d, lambda w: w * torch.nan),
        "its actions for observations of zeros are not fin",
    ),
    "a checkpoint of nothing": (lambda d: checkpoint(d, {"iteration": 1}), "can't be served (KeyError: 'processes')"),
    "another task": (
        lambda d: checkpoint(d, {"processes": [{"task": {}}], "config": {"name": "digits"}}),
        "a checkpoint of digits, which has no agents",
    ),
}
KINDS |= {f"a file for others{suffix}": (lambda d, s=suffix: written(d, f"policy{s}", TEXT), f": {suffix} is for other")
          for suffix in sorted(EXPORTED)}  # fmt: skip


@pytest.mark.parametrize(("make", "sentence"), KINDS.values(), ids=KINDS)
def test_what_is_no_policy_is_one_sentence(make: Callable, sentence: str, tmp_path: Path) -> None:
    place = make(tmp_path)
    said = refusal(place)
    assert said.startswith(f"policies.team={place}: ") and sentence in said and "\n" not in said, said


def refusal(place: Path, **settings: str) -> str:
    with pytest.raises(UserError) as error:
        Policies({"team": str(place)}, "last", ServerSettings(**settings), Metrics(), print)
    return str(error.value)


def test_a_run_directory_may_be_called_anything(tmp_path: Path) -> None:
    make_policy(tmp_path / "net.c", MLP)
    policies = Policies({"team": str(tmp_path / "net.c")}, "last", ServerSettings(), Metrics(), print)
    assert policies.current["team"].number == 1


def test_an_onnx_file_is_no_policy_of_the_backend_of_that_name(tmp_path: Path) -> None:
    said = refusal(written(tmp_path, "policy.onnx", TEXT), backend="onnx")
    assert said.endswith("(backend=onnx makes its own .onnx from them)"), said


def test_it_ends_with_exit_code_2_and_no_traceback(shell, tmp_path: Path) -> None:
    """Of an error that was not foreseen, and by a name of its own."""
    place = described(tmp_path, set_low)
    done = shell(tmp_path, "serve", "policies.good=zoo/balance", f"policies.odd={place}", "port=0")
    assert done.returncode == 2 and not done.stdout, done.stdout
    assert done.stderr.startswith(f"error: policies.odd={place}: can't be served (RuntimeError: ")
    assert done.stderr.count("\n") == 1, done.stderr
