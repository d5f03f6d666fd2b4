"""Supervised tasks, imitation, evaluations and export on the stand-in."""

import importlib.util
import json
import math
import sys

import pytest
import torch

from agents.policies.policy import Policy
from tests.fixtures.sources import ROOT
from tests.standin_cuda.runs import strict, train

__all__ = ["strict"]
SMALL = ["device=cuda", "trainer.progress=off", "logger=csv", "epochs=2"]
SUPERVISED = {
    "digits": ["experiment=digits", "trainer.average=swa", "trainer.average_from=0.5"],
    "digits_cnn": ["experiment=digits_cnn"],
    "digits_lstm": ["experiment=digits_lstm"],
    "autoencoder": ["experiment=autoencoder"],
    "vae": ["experiment=vae"],
    "sine": ["experiment=sine"],
    "logistic": ["experiment=logistic_regression", "trainer.precision=fp16"],
    "multi_label": ["experiment=multi_label"],
    "ranking": ["experiment=ranking"],
    "triplet": ["experiment=triplet"],
}


@pytest.mark.parametrize("name", SUPERVISED)
def test_supervised_tasks(tmp_path, name) -> None:
    _, task, summary = train(tmp_path, *SUPERVISED[name], sizes=SMALL)
    assert next(task.loss.parameters()).is_cuda and math.isfinite(task.evaluate()["loss"])
    assert json.loads((tmp_path / "summary.json").read_text())["final"] == summary["final"]


def script(name: str):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_policy_is_filmed_judged_recorded_cloned_and_exported(tmp_path, strict) -> None:
    run, episodes = tmp_path / "run", tmp_path / "episodes"
    train(run, "algo=mappo", "callbacks=replay")
    assert list((run / "replays").iterdir())
    evaluate, record, export = map(script, ("evaluate", "record", "export"))
    figures = evaluate.evaluate(evaluate.Options(str(run), episodes=2), [])
    assert math.isfinite(figures["episode_return"]["mean"])
    record.run(record.Options(str(run), episodes=10, out=str(episodes)))
    clone = ["experiment=clone", f"data.folder={episodes}"]
    sizes = [*SMALL, "env.max_steps=5", "task.eval_episodes=2", "task.batch_size=16"]
    _, task, _ = train(tmp_path / "clone", *clone, sizes=sizes)
    assert next(task.loss.parameters()).is_cuda
    export.run(export.Options(str(run), "safetensors", out=str(tmp_path / "export")))
    policy, observation = Policy.load(run), torch.zeros(2, 4, 16, device="cuda")
    there = Policy.load(tmp_path / "export", device="cuda")
    torch.testing.assert_close(there.act(observation).cpu(), policy.act(observation.cpu()))
