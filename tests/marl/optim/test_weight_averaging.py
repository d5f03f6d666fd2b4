"""Averages of the weights: against their formulas, in evaluations and checkpoints, and resumed bitwise."""

from functools import partial

import pytest
import torch

from marl.checkpoints import checkpoint_file
from marl.data import Digits
from marl.engine.trainer import Trainer
from marl.engine.updater import Updater
from marl.losses.objectives import CrossEntropy
from marl.networks import MLP
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
from marl.supervised.task import Supervised
from tests.fixtures.runs import make_run
from tests.marl.runs import make_task, rows, run


class Recorded(Updater):
    """Keeps the weights after every optimiser step, and the iteration in which it was."""

    def begin_iteration(self, iteration):
        self.iteration = iteration
        super().begin_iteration(iteration)

    def step(self):
        super().step()
        self.kept = getattr(self, "kept", [])
        self.kept.append((self.iteration, [p.detach().clone() for p in self.module.parameters()]))


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_the_average_is_its_formula(tmp_path, kind):
    decay = {"average_decay": 0.9} if kind == "ema" else {}
    trainer, task = Trainer(progress="off", average=kind, average_from=0.5, **decay), make_task(epochs=4)
    updater = Recorded(task, OptimizerConfig(lr=0.01), ScheduleConfig(), trainer.update_config)
    trainer.fit(task, tmp_path, updater=updater)
    if kind == "ema":
        taken = [weights for iteration, weights in updater.kept if iteration / 4 >= 0.5]
        expected = taken[0]
        for weights in taken[1:]:
            expected = [0.9 * e + 0.1 * w for e, w in zip(expected, weights, strict=True)]
    else:
        ends = [dict((i, w) for i, w in updater.kept if i == iteration)[iteration] for iteration in (1, 2, 3)]
        expected = [torch.stack(each).mean(0) for each in zip(*ends, strict=True)]  # after iterations 2, 3 and 4
    saved = checkpoint_file.load(tmp_path / "checkpoints" / "last.pt")
    names = [name for name, _ in trainer.task.loss.named_parameters()]
    for name, value, parameter in zip(names, expected, trainer.task.loss.parameters(), strict=True):
        torch.testing.assert_close(saved["loss"][name], value)
        assert torch.equal(saved["raw"][name], parameter)
    assert not torch.equal(saved["loss"][names[0]], saved["raw"][names[0]])


def test_evaluations_and_saved_weights_are_the_averages(tmp_path):
    summary, trainer = run(tmp_path, average="ema", average_decay=0.99)
    fresh = make_task()
    fresh.loss.load_state_dict(checkpoint_file.load_weights(tmp_path / "checkpoints" / "last.safetensors"))
    assert fresh.evaluate()["loss"] == pytest.approx(summary["final"]["loss"], rel=1e-6)
    assert trainer.task.evaluate()["loss"] != pytest.approx(summary["final"]["loss"], rel=1e-3)


def test_averaging_changes_nothing_in_training(tmp_path):
    weights = []
    for kind in ("none", "ema", "swa"):
        _, trainer = run(tmp_path / kind, average=kind)
        weights.append([p.detach().clone() for p in trainer.task.loss.parameters()])
    for others in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0], others, strict=True))


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_resume_is_exact_with_averages(tmp_path, kind):
    settings = {"average": kind, "average_from": 0.3}
    _, whole = run(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_after=3, **settings)
    _, resumed = run(tmp_path / "cut", resume=tmp_path / "cut" / "checkpoints" / "last.pt", **settings)
    assert rows(tmp_path / "whole") == rows(tmp_path / "cut")
    averages = [each.updater.averaging.state_dict().values() for each in (whole, resumed)]
    for a, b in zip(*averages, strict=True):
        assert torch.equal(a, b)


def test_swa_computes_batch_norm_again_for_the_average_only(tmp_path):
    torch.manual_seed(0)
    network = partial(MLP, hidden=[16], batch_norm=True, dropout=0.1)
    task = Supervised(Digits(), network, CrossEntropy(), epochs=6)
    trainer = Trainer(progress="off", average="swa", average_from=0.5, evaluate_every=2)
    summary = trainer.fit(task, tmp_path, optimizer=OptimizerConfig(lr=0.01))
    saved = checkpoint_file.load(tmp_path / "checkpoints" / "last.pt")
    name = "model.body.1.running_mean"
    assert not torch.allclose(saved["loss"][name], saved["raw"][name], atol=1e-4)
    assert torch.equal(saved["raw"][name], task.loss.state_dict()[name])
    assert summary["final"]["accuracy"] > 0.9


def test_agents_are_evaluated_and_saved_by_their_average(tmp_path):
    from agents.policies.policy import Policy

    folder = make_run(tmp_path / "run", "trainer.average=ema", "trainer.average_decay=0.5")
    saved = checkpoint_file.load(folder / "checkpoints" / "last.pt")
    policy = Policy.load(folder)
    name = next(name for name in saved["raw"] if name.startswith("actors.") and name.endswith("weight"))
    assert torch.equal(policy.state_dict()[name], saved["loss"][name])
    assert not torch.equal(saved["loss"][name], saved["raw"][name])
