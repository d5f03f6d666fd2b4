"""Supervised tasks through the engine: what they learn, what they report, and how they resume."""

from functools import partial

import pytest
import torch
from sklearn.linear_model import LogisticRegression as SklearnLogistic
from torch import nn

from marl.core.errors import UserError
from marl.core.seeding import seed_global
from marl.data import ArrayData, Digits, LinearRegression, LogisticRegression, Sine, Threshold
from marl.engine.trainer import Trainer
from marl.losses.objectives import BinaryCrossEntropy, CrossEntropy
from marl.networks import CNN, LSTM, MLP, Linear
from marl.optim.lr_schedule import ScheduleConfig
from marl.optim.optimizer_config import OptimizerConfig
from marl.supervised.task import Supervised, SupervisedLoss
from marl.task import Task

COSINE = ScheduleConfig(stages=[{"name": "CosineAnnealingLR", "T_max": "total"}])


@pytest.fixture(autouse=True)
def one_seed():
    seed_global(0)


def fit(task, folder, lr, schedule=COSINE, resume=None, **trainer):
    trainer = Trainer(**{"evaluate_every": 0, "checkpoint_every": 0, "progress": "off", **trainer})
    return trainer.fit(task, folder, optimizer=OptimizerConfig(lr=lr), schedule=schedule, resume=resume)


def test_supervised_is_a_task():
    task = Supervised(Threshold(), Linear, BinaryCrossEntropy(), epochs=3, batch_size=8)
    assert isinstance(task, Task)
    assert (task.iterations, task.units_per_iteration, task.steps_per_iteration) == (3, 1, 3)
    assert task.parts() == {"model": task.loss.model}


def test_linear_regression_recovers_least_squares(tmp_path):
    data = LinearRegression()
    task = Supervised(data, Linear, nn.MSELoss(), epochs=600, batch_size=len(data.train))
    fit(task, tmp_path, lr=0.05)
    x = torch.cat([data.train["x"], torch.ones(len(data.train), 1)], dim=1)
    closed_form = torch.linalg.lstsq(x, data.train["y"]).solution.flatten()
    head = task.loss.model.head
    learned = torch.cat([head.weight.flatten(), head.bias]).detach()
    torch.testing.assert_close(learned, closed_form, atol=1e-4, rtol=0)
    torch.testing.assert_close(learned[:-1], data.weight, atol=0.02, rtol=0)


def test_logistic_regression_agrees_with_sklearn(tmp_path):
    data = LogisticRegression()
    task = Supervised(data, Linear, BinaryCrossEntropy(), epochs=600, batch_size=len(data.train))
    fit(task, tmp_path, lr=0.3)
    theirs = SklearnLogistic(C=float("inf"), tol=1e-8).fit(data.train["x"].numpy(), data.train["y"].flatten().numpy())
    weight = torch.as_tensor(theirs.coef_, dtype=torch.float32)
    torch.testing.assert_close(task.loss.model.head.weight.detach(), weight, atol=2e-3, rtol=0)
    assert task.loss.model.head.bias.item() == pytest.approx(theirs.intercept_[0], abs=2e-3)
    expected = theirs.score(data.test["x"].numpy(), data.test["y"].flatten().numpy())
    assert task.evaluate()["test_accuracy"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("network", "lr", "epochs"),
    [
        (partial(MLP, hidden=[128], activation="relu"), 3e-3, 8),
        (partial(CNN, channels=[16, 32], hidden=[64]), 5e-3, 8),
        (partial(LSTM, hidden=64), 1e-2, 10),
    ],
)
def test_digits_are_learned_by_every_network(tmp_path, network, lr, epochs):
    task = Supervised(Digits(), network, CrossEntropy(), epochs=epochs)
    summary = fit(task, tmp_path, lr=lr)
    assert summary["final"]["test_accuracy"] > 0.93  # short runs; the presets reach 97 % and more
    assert summary["final"]["accuracy"] > 0.93
    prediction = task.predict(task.held_out["test_"]["x"])
    right = (prediction == task.held_out["test_"]["y"]).float().mean().item()
    assert right == pytest.approx(summary["final"]["test_accuracy"])


def test_numbers_above_eight_are_distinguished_from_the_others(tmp_path):
    task = Supervised(Threshold(), Linear, BinaryCrossEntropy(), epochs=200, batch_size=8)
    fit(task, tmp_path, lr=0.3)
    numbers = [[-100.0], [-2.5], [7.9], [9.1], [14.3], [1000.0]]
    assert task.predict(numbers).flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert task.evaluate()["test_accuracy"] > 0.98


def test_sine_is_learned_below_the_noise(tmp_path):
    task = Supervised(Sine(), partial(MLP, hidden=[32, 32]), nn.MSELoss(), epochs=60, batch_size=32)
    fit(task, tmp_path, lr=1e-2)
    figures = task.evaluate()
    assert task.monitor == ("loss", "min")
    assert set(figures) == {"loss", "test_loss"}
    assert figures["test_loss"] < 0.002 and figures["loss"] < 0.015  # the noise's variance is 0.01


def test_loss_module_reports_loss_and_accuracy_of_the_batch():
    task = Supervised(Digits(), MLP, CrossEntropy(), epochs=1)
    batch = next(task.batches(0))
    outputs = task.loss(batch)
    logits = task.loss.outputs(batch["x"])
    torch.testing.assert_close(outputs["loss"], nn.functional.cross_entropy(logits, batch["y"]))
    assert outputs["accuracy"].item() == pytest.approx((logits.argmax(1) == batch["y"]).float().mean().item())
    assert not outputs["accuracy"].requires_grad


def test_evaluation_counts_every_row_once_whatever_the_chunks(monkeypatch):
    task = Supervised(Digits(), partial(MLP, dropout=0.5), CrossEntropy(), epochs=1)
    task.loss.train()
    whole = task.evaluate()
    monkeypatch.setattr("marl.supervised.epochs.EVALUATION_ROWS", 50)
    assert task.evaluate() == pytest.approx(whole, rel=1e-5)
    assert task.loss.training  # left as it was found


def test_evaluation_leaves_training_streams_alone():
    task = Supervised(Digits(), partial(MLP, dropout=0.5), CrossEntropy(), epochs=1)
    order, stream = task.loader.permutation(1), torch.get_rng_state()
    task.evaluate()
    assert torch.equal(stream, torch.get_rng_state())
    assert torch.equal(order, task.loader.permutation(1))


def test_scaling_travels_in_the_checkpoint():
    learned, fresh = (Supervised(Sine(seed=seed), MLP, nn.MSELoss(), epochs=1) for seed in (0, 1))
    x = torch.linspace(-3, 3, 20).unsqueeze(1)
    assert not torch.equal(learned.loss.shift, fresh.loss.shift)
    fresh.loss.load_state_dict(learned.loss.state_dict())
    assert torch.equal(learned.predict(x), fresh.predict(x))


@pytest.mark.parametrize("evaluate_every", [0, 1])
def test_resumed_run_is_the_uninterrupted_run_to_the_bit(tmp_path, evaluate_every):
    def digits():
        seed_global(5)
        return Supervised(Digits(), partial(MLP, hidden=[32], dropout=0.2), CrossEntropy(), epochs=4, seed=5)

    whole, first, second = digits(), digits(), digits()
    constant = ScheduleConfig()
    seed_global(6)
    fit(whole, tmp_path / "whole", 1e-3, constant, evaluate_every=evaluate_every)
    seed_global(6)
    fit(first, tmp_path / "half", 1e-3, constant, evaluate_every=evaluate_every, max_iterations=2)
    seed_global(7)  # a new process has other streams: the checkpoint must bring them back
    second.loader.seed = 99
    last = tmp_path / "half" / "checkpoints" / "last.pt"
    fit(second, tmp_path / "rest", 1e-3, constant, evaluate_every=evaluate_every, resume=last)
    for name, value in whole.loss.state_dict().items():
        assert torch.equal(value, second.loss.state_dict()[name]), name


def test_any_torch_loss_serves():
    for objective in (nn.CrossEntropyLoss(label_smoothing=0.1), nn.MultiMarginLoss()):
        task = Supervised(Digits(), MLP, objective, epochs=1)
        task.loss(next(task.batches(0)))["loss"].backward()


def test_data_without_test_split_is_judged_by_validation_alone():
    x, y = torch.randn(20, 3), torch.randn(20, 2)
    task = Supervised(ArrayData("regression", 2, (x, y), (x, y)), Linear, nn.L1Loss(), epochs=1, batch_size=5)
    assert set(task.evaluate()) == {"loss"}
    assert task.summary({"loss": 1.0, "seconds": 3.0}) == {"loss": 1.0}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Supervised(Threshold(), Linear, BinaryCrossEntropy(), 1, 24), r"task\.batch_size=24: .*at most 23"),
        (lambda: Supervised(Digits(), MLP, nn.MSELoss(), 1), r"objective=MSELoss: does not fit classification"),
        (lambda: Supervised(Sine(), MLP, CrossEntropy(), 1), r"objective=CrossEntropy: does not fit.*one output"),
        (
            lambda: Supervised(Digits(), MLP, nn.CrossEntropyLoss(reduction="none"), 1),
            r"objective=CrossEntropyLoss.*\[3\] instead of one number",
        ),
        (
            lambda: Supervised(Threshold(), partial(MLP, batch_norm=True), BinaryCrossEntropy(), 1, 11),
            r"task\.batch_size=11: minibatches of one row .*no variance.*task\.drop_last=true leaves the last one out",
        ),
        (
            lambda: Supervised(Threshold(), partial(MLP, batch_norm=True), BinaryCrossEntropy(), 1, 1),
            r"task\.batch_size=1: minibatches of one row .*must be at least 2",
        ),
        (lambda: Supervised(Threshold(), LSTM, BinaryCrossEntropy(), 1, 8), r"network=lstm: .*\(1,\)"),
        (lambda: Supervised(Digits(), MLP, CrossEntropy(), 1).predict([[1.0]]), r"predict: takes .*1, 8, 8"),
    ],
)
def test_impossible_combinations_are_one_sentence(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_loss_module_compiles_to_the_same_figures():
    task = Supervised(Digits(), partial(MLP, hidden=[16]), CrossEntropy(), epochs=1)
    batch = next(task.batches(0))
    assert isinstance(task.loss, SupervisedLoss)
    compiled = torch.compile(task.loss, backend="aot_eager")
    torch.testing.assert_close(compiled(batch), task.loss(batch))
