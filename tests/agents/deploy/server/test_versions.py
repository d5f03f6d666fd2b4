"""New versions that are none: told once, whatever they raise, and watching goes on."""

import asyncio
import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serving]'")

import httpx

from agents.deploy.server import app as routes
from agents.deploy.server import networks
from agents.deploy.server.metrics import Metrics
from agents.deploy.server.sessions import Sessions
from agents.deploy.server.settings import ServerSettings
from agents.deploy.server.versions import Policies
from marl.checkpoints import checkpoint_file
from marl.core.errors import UserError
from tests.fixtures.serving import GRU, MLP, make_policy


class Told(list):
    """The lines that were said, and policies that say them."""

    def policies(self, place: Path) -> Policies:
        return Policies({"team": str(place)}, "last", ServerSettings(), Metrics(), self.append)


def odd(place: Path) -> None:
    """A policy file with a description that its reader did not foresee: actions whose bounds are missing."""
    policy = make_policy(place, MLP)
    about = json.loads(json.dumps(dict(policy.metadata)))
    about["spec"]["groups"]["red"]["action"]["low"] = []
    description = {"policy": json.dumps({"format": 1, **about})}
    checkpoint_file.save_weights(place / "policy.safetensors", policy.state_dict(), description)


def test_an_odd_file_is_told_once_and_the_next_one_serves(tmp_path: Path) -> None:
    make_policy(tmp_path, MLP)
    told = Told()
    policies = told.policies(tmp_path)
    odd(tmp_path)
    for _ in range(3):
        asyncio.run(policies.reload())
    assert policies.failures == 1 and len(told) == 1 and told[0].startswith("policies.team: version 1 stays; "), told
    make_policy(tmp_path, MLP, seed=1)
    asyncio.run(policies.reload())
    assert policies.current["team"].number == 2 and told[1].startswith("policies.team: version 2 serves")


def test_the_type_of_an_unforeseen_error_is_told(tmp_path: Path, monkeypatch) -> None:
    make_policy(tmp_path, MLP)
    told = Told()
    policies = told.policies(tmp_path)

    def fail(name: str, number: int) -> None:
        raise IndexError("list index\nout of range")

    monkeypatch.setattr(policies, "_load", fail)
    make_policy(tmp_path, MLP, seed=1)
    asyncio.run(policies.reload())
    assert told == [r"policies.team: version 1 stays; IndexError: list index\nout of range"]


def test_a_place_that_is_missing_is_told_once_each_time(tmp_path: Path) -> None:
    file, away = tmp_path / "policy.safetensors", tmp_path / "away"
    make_policy(tmp_path, MLP)
    told = Told()
    policies = told.policies(tmp_path)
    for time in (1, 2):
        os.rename(file, away)
        for _ in range(3):
            asyncio.run(policies.reload())
        assert policies.failures == time == len(told), told
        os.rename(away, file)
        asyncio.run(policies.reload())
    assert policies.current["team"].number == 1


def test_another_memory_is_another_size(tmp_path: Path) -> None:
    for before, after in ((MLP, GRU), (GRU, MLP), (GRU, {**GRU, "hidden": 7})):
        make_policy(tmp_path, before)
        told = Told()
        policies = told.policies(tmp_path)
        make_policy(tmp_path, after, seed=1)
        asyncio.run(policies.reload())
        assert told == ["policies.team: version 1 stays; the new one has other sizes of memory, with which clients "
                        "could not go on"]  # fmt: skip


def test_an_export_that_fails_is_a_mistake_of_the_settings(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(UserError, match=r"backend=onnx: this network can't be exported \(RuntimeError: no such op"):
        networks.Networks(make_policy(tmp_path, MLP), "onnx")


def test_what_takes_long_to_tell_is_made_once_for_each_version(tmp_path: Path, monkeypatch) -> None:
    make_policy(tmp_path, MLP)
    policies, made = Told().policies(tmp_path), []
    monkeypatch.setattr(routes, "card", lambda *_: made.append("card") or "a card")
    monkeypatch.setattr(routes, "page", lambda _: made.append("page") or "a page")
    app, _ = routes.application(policies, Sessions(1, 1.0), Metrics(), ServerSettings(), lambda: True)

    async def ask() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            first = [(await http.get(path)).text for path in ("/v1/model", "/docs") * 2]
            make_policy(tmp_path, MLP, seed=1)
            await policies.reload()
            return [*first, (await http.get("/v1/model")).text]

    model, page, again, page_again, other = asyncio.run(ask())
    assert (model, page) == (again, page_again) and made == ["card", "page", "card"]
    assert json.loads(model)["version"] == 1 and json.loads(other)["version"] == 2
