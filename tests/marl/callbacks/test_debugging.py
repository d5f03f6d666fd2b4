"""Tools for finding what is wrong: the layer a NaN comes from, one minibatch by heart, histograms."""

from functools import partial

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from marl.callbacks.debugging import Anomaly, Histograms, Overfit, histograms
from marl.config import compose
from marl.core.errors import Diverged, UserError
from marl.data import Sine
from marl.launch import build
from marl.networks import MLP
from marl.supervised.task import Supervised
from tests.fixtures.runs import TINY
from tests.marl.runs import make_task, rows, run


class Broken(nn.Module):
    """Roots: of negative numbers (NaN), of zeros (infinite slope), of zeros times zero (NaN within the layer)."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return {"value": x - 1e9, "slope": x - x.detach(), "inside": 0 * x}[self.kind].sqrt()


def broken_task(layer: nn.Module) -> Supervised:
    def network(in_shape, out_features):
        net = MLP(in_shape, out_features, hidden=[8, 8])
        net.body[2] = nn.Sequential(nn.Linear(8, 8), layer)
        return net

    return Supervised(Sine(samples=200), network, nn.MSELoss(), 2, seed=3)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Broken("value"), r"output of layer 'model.body.2.1' \(Broken\) holds 512 NaN.*inputs and weights are finite"),
        (Broken("slope"), r"back to layer 'model.body.2.0' holds 0 NaN and 512 inf.*'model.body.2.1', after it, was"),
        (Broken("inside"), r"'MulBackward0' returned nan.*backward pass of layer 'model.body.2.1' or of what feeds it"),
    ],
)
def test_anomaly_names_the_layer(tmp_path, layer, words):
    with pytest.raises(Diverged, match=words):
        run(tmp_path, task=broken_task(layer), callbacks=[Anomaly()])
    assert not torch.is_anomaly_enabled()


def test_anomaly_distinguishes_weights_inputs_and_the_objective(tmp_path):
    task = make_task()
    task.loss.model.body[0].weight.data[0, 0] = torch.inf
    with pytest.raises(Diverged, match="'model.body.0'.*its weight holds 0 NaN and 1 infinite of 16 numbers"):
        run(tmp_path, task=task, callbacks=[Anomaly()])

    class Infinite(nn.Module):
        """No layer: it holds one."""

        def __init__(self):
            super().__init__()
            self.inner = nn.MSELoss()

        def forward(self, outputs, target):
            return self.inner(outputs, target) / 0.0

    with pytest.raises(Diverged, match="loss is inf, from outputs of layers that are all finite"):
        run(tmp_path, task=make_task(objective=Infinite()), callbacks=[Anomaly()])


def test_anomaly_says_nothing_of_a_healthy_run_and_changes_it_by_rounding_only(tmp_path):
    losses = [run(tmp_path / str(i), callbacks=c)[0]["final"]["loss"] for i, c in enumerate(([], [Anomaly()]))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


OVERFIT = ["debug=overfit", "trainer.progress=off"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=digits"],  # with label smoothing and weight decay, which are switched off
        ["experiment=digits_lstm"],
        ["experiment=linear_regression"],
        [*TINY[:-1], "env.max_steps=100", "optimizer.lr=0.003"],
        [*TINY[:-1], "algo=ippo", "algo.share_actor=separate", "algo.update=sequential", "optimizer.lr=0.003"],
    ],
    ids=lambda overrides: overrides[0] if "experiment" in overrides[0] else "agents",
)
def test_one_minibatch_is_learnt_by_heart(overrides, tmp_path):
    config = compose.check(compose.compose([*overrides, *OVERFIT]))
    setup = build.build_setup(config)
    trainer = build.build_trainer(config)
    summary = trainer.fit(build.build_task(config), tmp_path, **{**setup, "loggers": []})
    figure = "loss" if "experiment" in overrides[0] else "value_loss"
    callback = trainer.callbacks[0]
    assert callback.figure == figure and summary["final"][figure] < 0.02 * callback.first
    assert "learnt by heart" in summary["stopped"]


def test_what_cannot_be_learnt_by_heart_is_said(tmp_path):
    task = Supervised(Sine(samples=200), partial(MLP, hidden=[]), nn.MSELoss(), 3, seed=3)  # a line is no sine
    with pytest.raises(UserError, match="debug=overfit: loss of one minibatch.*not 0.01 of it"):
        run(tmp_path, task=task, callbacks=[Overfit()])
    with pytest.raises(UserError, match="callbacks.overfit.figure=value_loss: the loss has loss"):
        run(tmp_path, callbacks=[Overfit(figure="value_loss")])
    config = compose.check(compose.compose([*TINY, "algo=isac", "algo.prefill=50", *OVERFIT]))
    setup = {**build.build_setup(config), "loggers": []}
    with pytest.raises(UserError, match="debug=overfit: the first iteration has no minibatch; .*algo.prefill=0"):
        build.build_trainer(config).fit(build.build_task(config), tmp_path, **setup)


def test_histograms_are_of_every_layer_and_leave_training_alone(tmp_path):
    _, plain = run(tmp_path / "plain")
    _, watched = run(tmp_path / "watched", callbacks=[Histograms(every=2)])
    assert rows(tmp_path / "plain") == rows(tmp_path / "watched")
    events = EventAccumulator(str(tmp_path / "watched"), size_guidance={"histograms": 0}).Reload()
    tags = events.Tags()["histograms"]
    assert {"activations/model.body.0", "weights/model.head.bias", "gradients/model.body.0.weight"} <= set(tags)
    assert [event.step for event in events.Histograms("weights/model.head.bias")] == [2, 4, 6]
    wrong = "callbacks.histograms.layers=model.bod: no such layer; did you mean 'model.body'"
    with pytest.raises(UserError, match=wrong):
        run(tmp_path / "wrong", callbacks=[Histograms(every=100, layers=["model.bod"])])


def test_gradients_of_histograms_are_those_of_the_batch():
    task = make_task()
    batch = next(task.batches(0))
    by_name = histograms(task.loss, batch, ["model.head"])
    head = {"activations": [""], "weights": [".weight", ".bias"], "gradients": [".weight", ".bias"]}
    assert set(by_name) == {f"{kind}/model.head{end}" for kind, ends in head.items() for end in ends}
    assert task.loss.training and all(p.grad is None for p in task.loss.parameters())
    task.loss(batch)["loss"].backward()
    gradient = task.loss.model.head.weight.grad.flatten()
    torch.testing.assert_close(by_name["gradients/model.head.weight"], gradient)
