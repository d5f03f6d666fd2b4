"""A real server with backend=onnx gives the actions of `Policy.act`, and goes on to a new version."""

import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serving]'")
pytest.importorskip("onnxruntime", reason="pip install -e '.[dev]'")
pytest.importorskip("onnxscript", reason="pip install -e '.[export]'")

from agents.deploy.client import Client
from agents.policies.policy import Policy
from envs.spec import EnvSpec
from tests.fixtures.serving import GRU, MLP, SPEC, closely, make_policy, observations, serving

RED = EnvSpec({"red": SPEC.groups["red"]})


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("policies")


@pytest.fixture(scope="module")
def policies(places) -> dict[str, Policy]:
    blue = EnvSpec({"blue": SPEC.groups["blue"]})  # each group is converted by itself, which takes seconds
    made = {"mlp": make_policy(places / "mlp", MLP), "gru": make_policy(places / "gru", GRU, spec=blue)}
    return made | {"swapped": make_policy(places / "swapped", MLP, spec=RED)}


@pytest.fixture(scope="module")
def server(policies, places):
    with serving(*(f"policies.{name}={places / name}" for name in policies), "backend=onnx") as running:
        yield running


def arrays(values: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in values.items()}


same = partial(closely, atol=1e-5)  # as between two libraries' matrix products


@pytest.mark.parametrize("seed", [None, 3], ids=["mode", "sample"])
@pytest.mark.parametrize("rows", [1, 2, 200])
def test_it_gives_the_policys_actions(server, policies, rows: int, seed: int | None) -> None:
    policy, seen = policies["mlp"], observations(policies["mlp"], rows, rows)
    draw = torch.Generator().manual_seed(5)
    allowed = torch.rand(rows, 3, 7, generator=draw) < 0.4
    allowed[..., [0, 3]] = True  # of each kind at least one
    drawn = None if seed is None else torch.Generator().manual_seed(seed)
    expected = policy.act(seen, seed is None, drawn, {"blue": {"action": allowed}})
    with Client(server.url, policy="mlp") as client:
        assert client.model()["backend"] == "onnx"
        same(client.act(arrays(seen), seed=seed, action_masks={"blue": allowed.numpy()}), expected)


def test_it_remembers(server, policies) -> None:
    policy, memory, kept = policies["gru"], policies["gru"].memory(3), {}
    with Client(server.url, policy="gru") as client, client.session() as session:
        for step in range(4):
            seen = observations(policy, 3, step)
            expected, memory = policy.act(seen, memory=memory)
            same(session.act(arrays(seen)), expected)
            actions, kept = client.act(arrays(seen), memory=kept)
            same(actions, expected)
            same(kept, memory)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_a_new_version_is_converted_too(server, policies, places) -> None:
    seen = observations(policies["swapped"], 2, 1)
    with Client(server.url, policy="swapped") as client:
        same(client.act(arrays(seen)), policies["swapped"].act(seen))
        new = make_policy(places / "new", MLP, seed=1, spec=RED)
        os.replace(places / "new" / "policy.safetensors", places / "swapped" / "policy.safetensors")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("policies.swapped: version 2 serves")
        same(client.act(arrays(seen)), new.act(seen))
        assert not np.allclose(policies["swapped"].act(seen)["red"], new.act(seen)["red"], atol=1e-2)
    assert "Traceback" not in "".join(server.lines)
