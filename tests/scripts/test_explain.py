"""scripts/explain.py on runs of digits and of agents, and graphs of what a run would train."""

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from agents.analysis.attribution import attribute, observations
from marl.config import compose
from marl.core.errors import UserError
from marl.launch import build
from tests.fixtures.runs import TINY, make_run


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    config = compose.check(compose.compose(["experiment=digits", "epochs=2", "trainer.progress=off"]))
    task = build.build_task(config)
    OmegaConf.save(config, folder / "config.yaml")
    build.build_trainer(config).fit(task, folder, **build.build_setup(config))
    return folder


def test_labels_are_explained_over_the_digits(digits, script, capsys):
    pytest.importorskip("captum")
    module = script("explain")
    out = module.explain(module.Options(str(digits), rows=4, steps=32))
    assert out == digits / "explained" / "attribution.png" and out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert float(printed.split("within ")[1].split()[0]) < 1e-2


def test_features_of_layers_are_a_file(digits, script):
    module = script("explain")
    out = module.explain(module.Options(str(digits), what="features", rows=7, layers=["model.body.*"]))
    tensors = load_file(out)
    assert tensors["input"].shape == (7, 1, 8, 8) and tensors["model.body.0"].shape == (7, 64)


def test_actions_are_explained_by_parts_of_the_observation(tmp_path, script, shell, capsys):
    pytest.importorskip("captum")
    run, module = str(make_run(tmp_path / "run")), script("explain")
    parts = [f"part {i}" for i in range(16)]
    out = module.explain(module.Options(run, rows=40, steps=16, out=str(tmp_path / "parts.png"), names=parts))
    assert "most: part" in capsys.readouterr().out and out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="2 names for an observation of 16 parts"):
        module.explain(module.Options(run, rows=40, steps=2, names=["a", "b"]))
    done = shell(tmp_path, "explain", "ckpt=run", "agent=9")
    assert done.returncode == 2 and "agents 0 to 3" in done.stderr and "Traceback" not in done.stderr


def test_choices_by_value_are_explained_by_their_value():
    pytest.importorskip("captum")
    values = ["algo=iql", "env.continuous_actions=false", "algo.buffer_frames=800", "algo.updates=1"]
    task = build.build_task(compose.check(compose.compose([*values, *TINY])))
    actor, observed = task.loss.actors["agents"], observations(task, 40, 0, "agents")
    names, table, _ = attribute(actor, observed, agent=1, steps=32)
    assert names == ["value"] and table.max() > 0
    mean = observed.mean(0, keepdim=True)
    taken = actor(observed).argmax(-1, keepdim=True)
    change = (actor(observed) - actor(mean)).gather(-1, taken)[:, 1].abs().mean()
    assert table.sum() >= change.item() - 1e-3  # shares of one observation add up to what it changes


def test_only_what_the_actor_reads_has_a_share():
    pytest.importorskip("captum")
    task = build.build_task(compose.check(compose.compose(TINY)))
    actor = task.loss.actors["agents"]
    with torch.no_grad():
        actor.network.networks[0].body[0].weight[:, 3:] = 0.0  # it looks at the first three parts only
    observed = observations(task, 40, 0, "agents")
    names, table, error = attribute(actor, observed, agent=1, steps=32)
    assert names == ["action 0", "action 1"] and table.shape == (2, 16)  # no column of the others: it does not see them
    assert (table[:, :3] > 0).any() and not table[:, 3:].any() and error < 1e-3


def test_discrete_actions_are_explained_too():
    pytest.importorskip("captum")
    task = build.build_task(compose.check(compose.compose([*TINY, "env.continuous_actions=false"])))
    names, table, error = attribute(task.loss.actors["agents"], observations(task, 40, 0, "agents"), 0, 32)
    assert names == ["log-probability"] and table.shape == (1, 16) and table.any() and error < 1e-3


def test_agents_with_a_memory_are_refused():
    task = build.build_task(compose.check(compose.compose([*TINY, "network=gru", "network.hidden=8"])))
    with pytest.raises(UserError, match="its agents have a memory"):
        observations(task, 40, 0, "agents")


def test_a_graph_is_a_picture(tmp_path, shell):
    small = [*TINY, "trainer.progress=auto", "out=nets.png"]
    done = shell(tmp_path, "show", "graph", *small)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "nets.png").read_bytes().startswith(b"\x89PNG")
