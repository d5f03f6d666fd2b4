"""What launches a run sets the process up, and builds each object once."""

import pytest
import torch

from marl.config import compose
from marl.core import device
from marl.engine.trainer import Trainer
from marl.launch import build
from marl.native import threads as helpers
from marl.optim.optimizer_config import OptimizerConfig
from scripts import train
from tests.fixtures.runs import TINY


def test_the_launcher_sets_the_process_up_and_a_trainer_does_not():
    threads, members = torch.get_num_threads(), helpers.members()
    try:
        Trainer(threads=threads + 1, helpers=7, deterministic=True)
        assert torch.get_num_threads() == threads and helpers.members() == members
        assert not torch.are_deterministic_algorithms_enabled()
        settings = {"_target_": "marl.engine.trainer.Trainer", "threads": 1, "helpers": 2, "deterministic": True}
        build.build_trainer({"trainer": settings})
        assert torch.get_num_threads() == 1 and helpers.members() == 3
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        build.configure_process(threads)


def test_training_builds_the_optimiser_once(tmp_path, monkeypatch):
    built, original = [], OptimizerConfig.build
    monkeypatch.setattr(OptimizerConfig, "build", lambda *arguments: built.append(arguments) or original(*arguments))
    train.train(compose.compose([*TINY, "logger=csv"]), tmp_path)
    assert len(built) == 1


def test_a_gpu_that_is_named_is_the_current_one_before_anything_is_built_on_it(monkeypatch):
    """Graphs are captured there; `tests/standin_cuda/cases_graphs.py` has a run."""
    current = []

    def task(*arguments, **named):
        assert current == [torch.device("cuda:1")] and named["device"] == current[0]
        raise KeyboardInterrupt  # built

    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(device, "pick", torch.device)
    monkeypatch.setattr(build, "part", lambda node, **named: task(node, **named) if named else None)
    with pytest.raises(KeyboardInterrupt):
        build.build_task(compose.check(compose.compose([*TINY, "device=cuda:1"])))
