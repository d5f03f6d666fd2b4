"""What a policy is made of, read from where it lies: a policy file, a checkpoint, a run, the zoo."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from marl.checkpoints import checkpoint_file
from marl.core import run_directory
from marl.core.errors import UserError
from marl.core.zoo import index as zoo

FORMAT = 1
NETWORKS = ("actors.", "critics.")  # what a policy keeps of a checkpoint's weights


def read(path: str | Path, which: str) -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    """Description, weights, and the file that they are from; `path` and `which` are those of `Policy.load`.

    Raises:
        UserError: there is none, it can't be read, or it holds no agents.
    """
    path = zoo.located(path)
    if path.is_dir() and (path / "policy.safetensors").is_file():
        path = path / "policy.safetensors"
    weights = None
    if path.suffix == ".safetensors":
        metadata, weights = _read(path)
        if metadata:
            return metadata, weights, path
        beside = path.with_suffix(".pt")  # a checkpoint's weights alone: what they are for is written beside them
        if not beside.is_file():
            raise UserError(
                f"{path} holds weights only, and no {beside.name} that says of which networks lies beside it; "
                "give a run directory, a checkpoint, or a policy.safetensors of scripts/export.py"
            )
        path = beside
    path = run_directory.find(path, which)
    state = checkpoint_file.load(path)
    metadata = _description_of(state, path)
    weights = state["loss"] if weights is None else weights
    weights = {key: value for key, value in weights.items() if key.startswith(NETWORKS)}
    return {**metadata, "critics": any(key.startswith("critics.") for key in weights)}, weights, path


def write(path: str | Path, metadata: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write a policy file, whole or not at all."""
    checkpoint_file.save_weights(path, weights, {"policy": json.dumps({"format": FORMAT, **metadata})})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description (empty: the file has none) and the weights of a safetensors file."""
    try:
        with safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get("policy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} can't be read as a policy: {error}") from error
    return _parsed(text, path) if text is not None else {}, checkpoint_file.load_weights(path)


def _parsed(text: str, path: Path) -> dict[str, Any]:
    """A policy file's description."""
    try:
        metadata = json.loads(text)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict) or metadata.pop("format", None) != FORMAT:
        raise UserError(f"{path} is no policy of this version (format {FORMAT})")
    for key in ("env", "run"):  # what pages and cards tell of a policy, read long after it is loaded
        if not isinstance(metadata.get(key) or {}, dict):
            raise UserError(f"{path} can't be read as a policy: its description's {key} is no mapping")
    return metadata


def _description_of(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The same of a checkpoint, but for "critics"."""
    spec, config = state["processes"][0]["task"].get("spec"), state["config"]
    if not config.get("algo"):
        raise UserError(f"{path}: a checkpoint of {config.get('name', 'another task')}, which has no agents")
    if spec is None:
        raise UserError(
            f"{path}: written by an earlier version, without the sizes of observations and actions; "
            "resume the run once with this version"
        )
    return {
        "spec": spec,
        **{key: config.get(key) for key in ("algo", "network", "critic_network", "env", "groups")},
        "run": {
            "checkpoint": "/".join(path.resolve().parts[-3:]),
            "name": config.get("name"),
            "seed": config.get("seed"),
            **state.get("budget", {}),  # what was really trained; an older checkpoint does not say
            "iteration": state.get("iteration"),
            "evaluation": state.get("evaluation"),
        },
    }
