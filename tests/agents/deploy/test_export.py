"""Exported policies: the same actions elsewhere, for any batch, and a card that tells what they are."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from agents.deploy.export import export
from agents.evaluation.episodes import evaluate, statistics
from agents.policies.policy import Policy
from envs.vmas.env import VmasEnv
from marl.core.errors import UserError
from tests.fixtures.runs import make_run

ROOT = Path(__file__).resolve().parents[3]
RUNS = {
    "continuous": ["env=vmas/mpe/simple_spread"],
    "groups": [
        "env=vmas/mpe/simple_tag",
        "algo.share_actor=separate",
        "network.layer_norm=true",
        "network.activation=gelu",
    ],
    "discrete": ["env=vmas/mpe/simple_spread", "env.continuous_actions=false", "env.multi_discrete=true"],
    "hybrid": ["env=vmas/mpe/simple_reference", "env.words=discrete"],
    "clipped": ["env=vmas/mpe/simple_spread", "algo.policy=clipped_normal"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    return {name: make_run(tmp_path_factory.mktemp("runs") / name, *overrides) for name, overrides in RUNS.items()}


def observations(policy: Policy, batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: 2 * torch.randn(batch, g.n_agents, g.observation_size, generator=generator)
        for name, g in policy.spec.groups.items()
    }


@pytest.mark.parametrize("name", RUNS)
def test_onnx_gives_the_same_actions(runs, name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[dev]'")
    policy = Policy.load(runs[name])
    file = export(policy, "onnx", tmp_path)
    session = onnxruntime.InferenceSession(str(file))
    for batch in (1000, 1):
        inputs = observations(policy, batch)
        actions = session.run(None, {f"{n}_observation": o.numpy() for n, o in inputs.items()})
        for (group, expected), action in zip(policy.act(inputs).items(), actions, strict=True):
            assert action.shape == tuple(expected.shape) and np.abs(action - expected.numpy()).max() <= 1e-5, group
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["policy"])
    assert metadata["env"]["scenario"] == policy.metadata["env"]["scenario"]


@pytest.mark.parametrize("name", RUNS)
def test_torch_export_gives_the_same_actions(runs, name: str, tmp_path: Path) -> None:
    policy = Policy.load(runs[name])
    extra = {"policy.json": ""}
    program = torch.export.load(export(policy, "torch_export", tmp_path), extra_files=extra).module()
    for batch in (1000, 1):
        inputs = observations(policy, batch)
        for action, expected in zip(program(*inputs.values()), policy.act(inputs).values(), strict=True):
            torch.testing.assert_close(action, expected, atol=1e-5, rtol=0)
    assert "spec" in json.loads(extra["policy.json"])


def test_missing_packages_are_reported_in_a_sentence(runs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"format=onnx: onnxscript is not installed; run pip install -e '\.\[export\]'"):
        export(Policy.load(runs["continuous"]), "onnx", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_card_lists_layout_units_configuration_and_score(runs, tmp_path: Path) -> None:
    policy = Policy.load(runs["groups"])
    export(policy, "safetensors", tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "`adversary_observation` | float32 [B, 3, 16]" in card and "`agent_action` | float32 [B, 1, 2]" in card
    assert "-1 to 1" in card and "episode return" in card and "3 episodes" in card
    config = yaml.safe_load(card.partition("```yaml")[2].partition("```")[0])
    assert config["algo"]["critic"] == "concat" and config["network"]["activation"] == "gelu"
    torch.testing.assert_close(Policy.load(tmp_path).act(observations(policy, 5)), policy.act(observations(policy, 5)))


def test_the_script_of_the_docs_drives_raw_vmas_to_the_same_return(runs, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install -e '.[dev]'")
    code = re.search(r"```python\n(import json.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)[1]
    assert len(code.strip().splitlines()) <= 20
    policy = Policy.load(runs["continuous"])
    export(policy, "onnx", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    mean = float(done.stdout.split()[0])
    env = VmasEnv(
        "mpe/simple_spread",
        num_envs=200,
        max_steps=15,
        fast="off",
        scenario_kwargs=policy.metadata["env"]["scenario_kwargs"],
    )
    low, high = statistics(evaluate(env, policy.actors, seed=0).episode_returns())["ci95"]
    assert low <= mean <= high
