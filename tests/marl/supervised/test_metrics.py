"""Further figures against scikit-learn's, those that an evaluation gives, and the pictures of a finished run."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from marl.callbacks import figures
from marl.core.errors import UserError
from marl.data import DigitAttributes, Digits, Sine
from marl.engine.trainer import Trainer
from marl.loggers.loggers import TensorBoardLogger
from marl.losses.objectives import BinaryCrossEntropy, CrossEntropy
from marl.networks import MLP
from marl.optim.optimizer_config import OptimizerConfig
from marl.supervised import metrics
from marl.supervised.task import Supervised


def measured(names, kind, outputs, target) -> dict[str, float]:
    out_features = outputs.shape[-1]
    return {name: f(outputs, target) for name, f in metrics.build(names, kind, out_features).items()}


def test_of_classes():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (300,), generator=g)
    outputs = torch.randn(300, 5, generator=g) + 1.5 * torch.nn.functional.one_hot(y, 5) * (y < 4).float().unsqueeze(1)
    got = measured(["precision", "recall", "f1", "top_2", "top_3"], "classification", outputs, y)
    called = outputs.argmax(1)
    for name, function in (("precision", "precision_score"), ("recall", "recall_score"), ("f1", "f1_score")):
        expected = getattr(sklearn, function)(y, called, average="macro", zero_division=0)
        assert got[name] == pytest.approx(expected, abs=1e-6), name
    for k in (2, 3):
        assert got[f"top_{k}"] == pytest.approx(sklearn.top_k_accuracy_score(y, outputs.numpy(), k=k))
    counts = metrics.confusion(called, y, 5).numpy()
    assert np.array_equal(counts, sklearn.confusion_matrix(y, called))


@pytest.mark.parametrize("labels", [1, 3])
def test_of_labels(labels):
    g = torch.Generator().manual_seed(1)
    y = (torch.rand(200, labels, generator=g) < 0.4).float()
    outputs = torch.randn(200, labels, generator=g) + y
    names = ["precision", "recall", "f1"] + ["exact_match"] * (labels > 1)
    got, called = measured(names, "binary", outputs, y), (outputs > 0).long()
    average = {"average": "macro"} if labels > 1 else {}
    flat = (lambda t: t) if labels > 1 else (lambda t: t.flatten())
    assert got["f1"] == pytest.approx(sklearn.f1_score(flat(y), flat(called), **average), abs=1e-6)
    assert got["recall"] == pytest.approx(sklearn.recall_score(flat(y), flat(called), **average), abs=1e-6)
    if labels > 1:
        assert got["exact_match"] == pytest.approx(sklearn.accuracy_score(y, called), abs=1e-6)


def test_of_numbers():
    g = torch.Generator().manual_seed(2)
    y = torch.randn(150, 2, generator=g) * torch.tensor([1.0, 10.0])
    outputs = y + torch.randn(150, 2, generator=g)
    got = measured(["r2", "mae"], "regression", outputs, y)
    assert got["r2"] == pytest.approx(sklearn.r2_score(y, outputs), abs=1e-5)
    assert got["mae"] == pytest.approx(sklearn.mean_absolute_error(y, outputs), abs=1e-5)


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (["r2"], "classification", r"task.metrics=\[r2\]: not for classification data \(allowed are precision"),
        (["f2"], "classification", r"task.metrics=\[f2\]: not for classification data"),
        (["f1"], "regression", "allowed are r2, mae"),
        (["top_9"], "classification", "must be below 5"),
        (["f1"], "ranking", "which has no others"),
    ],
)
def test_metrics_that_do_not_fit_are_one_sentence(names, kind, message):
    with pytest.raises(UserError, match=message):
        metrics.build(names, kind, 5)


def fit(task, folder, **settings):
    trainer = Trainer(progress="off", evaluate_every=1, checkpoint_every=0, **settings.pop("trainer", {}))
    return trainer.fit(task, folder, optimizer=OptimizerConfig(lr=3e-3), **settings)


def test_an_evaluation_gives_them_for_every_split(tmp_path):
    network = partial(MLP, hidden=[32])
    task = Supervised(Digits(), network, CrossEntropy(), epochs=2, metrics=["f1", "top_3"])
    final = fit(task, tmp_path)["final"]
    assert {"f1", "top_3", "test_f1", "test_top_3"} <= set(final)
    test = task.held_out["test_"]
    expected = sklearn.f1_score(test["y"], task.predict(test["x"]), average="macro")
    assert final["test_f1"] == pytest.approx(expected, abs=1e-6) and final["test_top_3"] > final["test_accuracy"]
    several = Supervised(DigitAttributes(), network, BinaryCrossEntropy(), epochs=1, metrics=["exact_match"])
    assert 0 <= several.evaluate()["exact_match"] <= several.evaluate()["accuracy"]
    assert set(Supervised(Digits(), network, CrossEntropy(), epochs=1).evaluate()) == {
        "loss", "accuracy", "test_loss", "test_accuracy"}  # fmt: skip


def test_pictures_of_a_finished_run(tmp_path):
    task = Supervised(Digits(), partial(MLP, hidden=[16]), CrossEntropy(), epochs=2)
    fit(task, tmp_path, callbacks=[figures.Pictures()], loggers=[TensorBoardLogger()])
    for name in ("curves", "confusion", "wrong"):
        content = (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 5000
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["images"]) == {"curves", "confusion", "wrong"}


def test_curves_continue_after_a_resume_and_serve_every_task(tmp_path):
    def sine():
        return Supervised(Sine(samples=100), partial(MLP, hidden=[8]), torch.nn.MSELoss(), epochs=4)

    first, second = figures.Pictures(), figures.Pictures()
    fit(sine(), tmp_path, callbacks=[first], trainer={"max_iterations": 2})
    fit(sine(), tmp_path, callbacks=[second], resume=tmp_path / "checkpoints" / "last.pt")
    assert [record["epochs"] for record in second.records] == [1, 2, 3, 4]
    assert set(second.records[-1]) == {"epochs", "loss", "eval/loss", "eval/test_loss"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"curves.png"}
    agents = [{"frames": 60.0 * i, "episode_return": i, "eval/episode_return": i + 1.0} for i in range(3)]
    axes = figures.draw_curves(agents).axes
    assert [a.get_title() for a in axes] == ["episode return"] and len(axes[0].lines) == 2


def test_what_the_pictures_show():
    figure = figures.draw_confusion(np.array([[5, 0], [2, 3]]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["5", "2", "3"]
    sure = torch.tensor([0.9, 0.6])
    drawn = figures.draw_wrong(np.zeros((2, 1, 8, 8)), torch.tensor([3, 8]), torch.tensor([5, 1]), sure)
    assert [axes.get_title() for axes in drawn.axes] == ["3 not 5\n90%", "8 not 1\n60%"]
