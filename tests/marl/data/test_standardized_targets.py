"""Targets far from mean 0 and deviation 1 are learned as they lie; figures, predictions and files keep their units."""

import csv
from functools import partial

import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.optim.swa_utils import AveragedModel

from marl.checkpoints import checkpoint_file
from marl.checkpoints.transfer import load_weights, unscaled
from marl.config import compose
from marl.data import CSV, ArrayData, CSVStream, Sine
from marl.launch import build
from marl.losses.objectives import ELBO, AsymmetricL1, Penalised, Transformed, Weighted
from marl.networks import MLP
from marl.supervised.task import Supervised, of_differences, r_squared
from tests.marl.runs import rows, run


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """442 patients, ten numbers each; targets of mean 152 and deviation 77, of which a linear model explains half."""
    path, data = tmp_path_factory.mktemp("data") / "diabetes.csv", load_diabetes(scaled=False)
    with open(path, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow([*data.feature_names, "progression"])
        lines.writerows([*x, y] for x, y in zip(data.data, data.target, strict=True))
    return path


def fit(folder, table, *overrides, reader="csv"):
    recipe = ["experiment=linear_regression", f"data={reader}", f"data.path={table}", "data.target=progression"]
    config = compose.check(compose.compose([*recipe, "task.metrics=[r2]", "trainer.progress=off", *overrides]))
    trainer, task = build.build_trainer(config), build.build_task(config)
    return trainer.fit(task, folder, **{**build.build_setup(config), "loggers": []}), task


@pytest.mark.parametrize("reader", ["csv", "csv_stream"])
def test_the_documented_recipe_learns(tmp_path, table, reader, capsys):
    summary, task = fit(tmp_path, table, reader=reader)
    assert summary["final"]["r2"] > 0.42 and summary["final"].get("test_r2", 1) > 0.42
    predicted = task.predict(task.held_out[""]["x"])
    assert 100 < predicted.mean() < 200 and "R²" not in capsys.readouterr().err
    error = (predicted - task.held_out[""]["y"]).square().mean().item()
    assert summary["final"]["loss"] == pytest.approx(error, rel=1e-4)  # in the targets' units


def test_what_is_no_better_than_the_mean_is_said(tmp_path, table, capsys):
    summary, task = fit(tmp_path, table, "data.standardize_targets=false", "epochs=5")
    assert not task.loss.scaled and summary["final"]["r2"] < -1
    message = capsys.readouterr().err
    assert f"warning: R² is {summary['final']['r2']:.2f} on the validation split" in message
    assert "data.standardize_targets=true may help" in message


def far(rows: int = 80, units: float = 500.0) -> ArrayData:
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    y = torch.stack([2000 + units * x[:, 0], -3 + x[:, 1] / units], 1)
    return ArrayData("regression", 2, (x, y), (x[:20], y[:20]))


def task(data=None, objective=None) -> Supervised:
    torch.manual_seed(0)
    return Supervised(data or far(), partial(MLP, hidden=[8]), objective or nn.MSELoss(), 6, 20, seed=3)


def test_the_gradient_is_that_of_scaled_targets_and_the_figure_that_of_the_targets():
    scaled = task()
    batch = next(scaled.batches(0))
    loss = scaled.loss(batch)["loss"]
    loss.backward()
    got = [p.grad.clone() for p in scaled.loss.parameters()]
    scaled.loss.zero_grad()
    y = (batch["y"] - scaled.loss.target_shift) / scaled.loss.target_scale
    nn.functional.mse_loss(scaled.loss.model((batch["x"] - scaled.loss.shift) / scaled.loss.scale), y).backward()
    for gradient, expected in zip(got, scaled.loss.parameters(), strict=True):
        torch.testing.assert_close(gradient, expected.grad)
    torch.testing.assert_close(loss, nn.functional.mse_loss(scaled.loss.outputs(batch["x"]), batch["y"]))
    assert y.mean(0).abs().max() < 0.7 and 0.3 < y.std(0).min() < 2


@pytest.mark.parametrize("capture", [True, False])
def test_resume_is_bitwise_and_checkpoints_predict_by_themselves(tmp_path, capture):
    whole, half, rest = task(), task(), task()
    run(tmp_path / "whole", task=whole, capture=capture)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "half", task=half, stop_after=3, capture=capture)
    run(tmp_path / "half", task=rest, resume=tmp_path / "half" / "checkpoints" / "last.pt", capture=capture)
    assert rows(tmp_path / "half") == rows(tmp_path / "whole")
    x = torch.randn(5, 3)
    assert torch.equal(rest.predict(x), whole.predict(x))
    other = task(far(units=7.0))  # other data, whose scaling gives way to that of the weights
    load_weights(other, tmp_path / "whole" / "checkpoints" / "best.safetensors")
    best = checkpoint_file.load_weights(tmp_path / "whole" / "checkpoints" / "best.pt")
    assert torch.equal(other.loss.target_scale, best["target_scale"]) and other.predict(x)[:, 0].mean() > 500


def test_weights_of_before_targets_were_scaled_mean_what_they_meant(tmp_path):
    old = task(objective=Penalised(nn.MSELoss(), l2=0.1))  # no objective of differences: targets stay as they are
    assert not old.loss.scaled and "target_scale" not in old.loss.state_dict()
    checkpoint_file.save_weights(tmp_path / "old.safetensors", old.loss.state_dict(), {})
    x = torch.randn(5, 3)
    for strict in (True, False):
        new = task()
        load_weights(new, tmp_path / "old.safetensors", strict)
        assert torch.equal(new.predict(x), old.predict(x))
    average = AveragedModel(task().loss)
    average.load_state_dict(AveragedModel(old.loss).state_dict())
    assert torch.equal(average.module.outputs(x), old.loss.outputs(x))


def test_scaling_becomes_part_of_the_layers_of_an_actor():
    scaled = task()
    saved = unscaled({name: value.clone() for name, value in scaled.loss.state_dict().items()}, "x")
    assert not {"shift", "scale", "target_shift", "target_scale"} & set(saved)
    model = task().loss.model
    model.load_state_dict({name.removeprefix("model."): value for name, value in saved.items()})
    x = torch.randn(9, 3)
    torch.testing.assert_close(model(x), scaled.loss.outputs(x), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (nn.MSELoss(), True),
        (nn.L1Loss(), True),
        (nn.HuberLoss(delta=0.3), True),
        (AsymmetricL1(2.0, 1.0), True),
        (Weighted({"a": nn.MSELoss(), "b": nn.L1Loss()}), True),
        (Penalised(nn.MSELoss(), l1=0.1), False),
        (nn.PoissonNLLLoss(), False),
        (Transformed(nn.KLDivLoss(reduction="batchmean"), "log_softmax"), False),
        (nn.CrossEntropyLoss(), False),
        (nn.HingeEmbeddingLoss(), False),
        (nn.MSELoss(reduction="none"), False),
        (ELBO(), False),
    ],
)
def test_only_objectives_of_differences_scale_targets(objective, expected):
    state = torch.get_rng_state()
    assert of_differences(objective, 3) is expected
    assert torch.equal(state, torch.get_rng_state())


def test_a_file_and_a_stream_of_it_are_scaled_alike(table):
    stream = CSVStream(str(table), "progression", validation=0.1)
    x, y = (torch.stack(part).double() for part in zip(*stream.rows(), strict=True))
    for statistics, values in (((stream.shift, stream.scale), x), ((stream.target_shift, stream.target_scale), y)):
        torch.testing.assert_close(statistics[0].double(), values.mean(0), rtol=1e-6, atol=0)
        torch.testing.assert_close(statistics[1].double(), values.std(0, correction=0), rtol=1e-6, atol=0)
    whole = CSV(str(table), "progression")
    torch.testing.assert_close(whole.target_shift, whole.train["y"].mean(0))
    assert not hasattr(CSV(str(table), "progression", standardize_targets=False), "target_shift")
    assert not hasattr(Sine(), "target_shift")  # whose published figures are of targets as they are


def test_r_squared_is_sklearns():
    from sklearn.metrics import r2_score

    y = torch.randn(50, 3)
    predicted = y + 0.3 * torch.randn(50, 3)
    assert r_squared(predicted, y) == pytest.approx(r2_score(y.numpy(), predicted.numpy()), rel=1e-5)
    y[:, 1] = 2.0  # does not vary
    assert r_squared(predicted, y) == pytest.approx(r2_score(y[:, ::2].numpy(), predicted[:, ::2].numpy()), rel=1e-5)
