"""Classes that have moved: files with their earlier dotted paths are read as if they had been written today."""

import json
from pathlib import Path

import pytest
import torch

from agents.policies.policy import Policy
from envs.spec import describe
from marl.callbacks.early_stopping import EarlyStopping
from marl.checkpoints import checkpoint_file
from marl.config import compose
from marl.config.saved_config import read_config
from marl.core import imports, kinds, moved
from marl.networks import MLP
from tests.agents.masked_env import Doors

# As if networks, callbacks and a schedule's function had been elsewhere; `marl.sets` is by now a package of that name.
EARLIER = {
    "marl.bodies": MLP.__module__,
    "marl.hooks": "marl.misplaced",
    "marl.hooks.Patience": f"{EarlyStopping.__module__}.{EarlyStopping.__qualname__}",
    "marl.sets": "marl.sets.readers",
}


@pytest.fixture(autouse=True)
def table(monkeypatch) -> None:
    monkeypatch.setattr(moved, "MOVED", EARLIER)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("marl.bodies.MLP", f"{MLP.__module__}.MLP"),
        ("marl.bodies.MLP.Inner", f"{MLP.__module__}.MLP.Inner"),
        ("marl.hooks.Patience", EARLIER["marl.hooks.Patience"]),
        ("marl.hooks.Patience 2", EARLIER["marl.hooks.Patience"] + " 2"),
        ("marl.hooks.Other 3", "marl.misplaced.Other 3"),
        ("marl.sets.Digits", "marl.sets.readers.Digits"),
        ("marl.sets.readers.Digits", "marl.sets.readers.Digits"),
        ("marl.bodies_of_mine.MLP", "marl.bodies_of_mine.MLP"),
        ("mine.marl.bodies.MLP", "mine.marl.bodies.MLP"),
        ("bodies", "bodies"),
        ("", ""),
    ],
)
def test_the_longest_entry_decides_and_other_paths_stay(path: str, expected: str) -> None:
    assert moved.current(path) == expected
    assert moved.current(expected) == expected  # what is up to date stays


def test_earlier_paths_are_resolved() -> None:
    assert imports.resolve("marl.bodies.MLP", "network._target_") is MLP
    assert kinds.build({"_target_": "marl.bodies.MLP", "_partial_": True}).func is MLP


def test_a_command_line_may_use_an_earlier_path_and_the_run_has_the_new_one() -> None:
    arguments = ["network._target_=marl.bodies.MLP", "+callbacks.early._target_=marl.hooks.Patience"]
    config = compose.check(compose.compose(["experiment=threshold", "network=mlp", *arguments]))
    assert config["network"]["_target_"] == f"{MLP.__module__}.MLP"
    assert config["callbacks"]["early"]["_target_"] == EARLIER["marl.hooks.Patience"]


def test_a_saved_configuration_is_brought_up_to_date(tmp_path: Path) -> None:
    config = {"task": {"_target_": "mine.Task"}, "trainer": {}, "optimizer": {}, "seed": 0, "name": "marl.bodies.MLP"}
    config["network"] = {"_args_": [{"_target_": "marl.bodies.MLP"}], "hidden": [8]}
    config["scheduler"] = {"stages": [{"name": "LambdaLR", "lr_lambda": "marl.sets.rate"}]}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    read = read_config(tmp_path / "config.yaml")
    assert read["network"] == {"_args_": [{"_target_": f"{MLP.__module__}.MLP"}], "hidden": [8]}
    assert read["scheduler"]["stages"] == [{"name": "LambdaLR", "lr_lambda": "marl.sets.readers.rate"}]
    assert read["name"] == "marl.bodies.MLP" and read["task"] == {"_target_": "mine.Task"}


def test_a_checkpoint_is_brought_up_to_date(tmp_path: Path) -> None:
    callbacks = {"marl.hooks.Patience": {"waited": 1}, "marl.hooks.Patience 2": {"waited": 2}, "mine.Callback": {}}
    state = {"config": {"network": {"_target_": "marl.bodies.MLP"}}, "callbacks": callbacks, "iteration": 3}
    checkpoint_file.save(tmp_path / "last.pt", state)
    read = checkpoint_file.load(tmp_path / "last.pt")
    name = EARLIER["marl.hooks.Patience"]
    assert read["callbacks"] == {name: {"waited": 1}, f"{name} 2": {"waited": 2}, "mine.Callback": {}}
    assert read["config"] == {"network": {"_target_": f"{MLP.__module__}.MLP"}} and read["iteration"] == 3


def test_a_policy_file_is_brought_up_to_date(tmp_path: Path) -> None:
    env = Doors(num_envs=2, seed=1)
    node = {"_target_": f"{MLP.__module__}.MLP", "hidden": [8]}
    metadata = {"spec": describe(env.spec), "algo": {}, "network": node, "env": {"_target_": "marl.sets.Doors"}}
    policy = Policy(metadata)
    about = {"format": 1, **metadata, "network": {**node, "_target_": "marl.bodies.MLP"}}
    path = tmp_path / "policy.safetensors"
    checkpoint_file.save_weights(path, policy.state_dict(), {"policy": json.dumps(about)})
    again = Policy.load(path)
    observation, _ = env.reset(1)
    for name, action in policy.act(observation).items():
        assert torch.equal(again.act(observation)[name], action)
    again.save(path)
    written = Policy.load(path).metadata
    assert written["network"] == node and written["env"] == {"_target_": "marl.sets.readers.Doors"}
