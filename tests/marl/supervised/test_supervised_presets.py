"""The supervised presets, composed as a user runs them, reach the figures that their headers state."""

import struct

import pytest
import torch

from marl.config import compose
from marl.data.images import FASHION_MNIST_FILES
from marl.launch import build
from marl.networks import MLP

FIGURES = [
    (["experiment=digits"], "test_accuracy", 0.97, 1.0),
    (["experiment=digits", "network=cnn"], "test_accuracy", 0.98, 1.0),
    (["experiment=digits_cnn"], "test_accuracy", 0.98, 1.0),
    (["experiment=digits_lstm"], "test_accuracy", 0.95, 1.0),
    (["experiment=threshold"], "test_accuracy", 0.985, 1.0),
    (["experiment=sine"], "test_loss", 0.0, 0.001),
    (["experiment=linear_regression"], "test_loss", 0.0, 0.012),
    (["experiment=logistic_regression"], "test_accuracy", 0.90, 0.92),
    (["experiment=sine_polynomial"], "test_loss", 0.0, 0.002),
    (["experiment=multi_label"], "test_accuracy", 0.97, 1.0),
    (["experiment=ranking"], "test_accuracy", 0.92, 1.0),
    (["experiment=triplet"], "test_accuracy", 0.96, 1.0),
]


def fit(overrides, folder):
    config = compose.check(compose.compose([*overrides, "trainer.progress=off", f"hydra.run.dir={folder}"]))
    trainer = build.build_trainer(config)
    task = build.build_task(config)
    setup = build.build_setup(config)
    return trainer.fit(task, folder, **{**setup, "loggers": []}), task


@pytest.mark.parametrize(("overrides", "metric", "least", "most"), FIGURES)
def test_preset_reaches_its_figure(tmp_path, overrides, metric, least, most):
    summary, _ = fit(overrides, tmp_path)
    for block in ("final", "best"):
        assert least <= summary[block][metric] <= most


@pytest.mark.parametrize("preset", ["digits", "fashion_mnist"])
def test_a_presets_objective_leaves_no_key_behind(preset):
    assert compose.compose([f"experiment={preset}"]).objective.label_smoothing == 0.1
    for name in ("nll", "kl", "mse"):
        compose.check(compose.compose([f"experiment={preset}", f"objective={name}"]))


def test_a_new_head_on_a_frozen_network(tmp_path):
    fit(["experiment=digits", "data.digits=[0,1,2,3,4,5]", "epochs=20"], tmp_path / "six")
    overrides = ["experiment=fine_tune", f"init_from={tmp_path / 'six'}"]
    config = compose.check(compose.compose([*overrides, "trainer.progress=off"]))
    task = build.build_task(config)
    body = {name: value.clone() for name, value in task.loss.model.body.state_dict().items()}
    head = task.loss.model.head.weight.clone()
    assert head.shape == (4, 64)
    trainer = build.build_trainer(config)
    summary = trainer.fit(task, tmp_path / "four", **{**build.build_setup(config), "loggers": []})
    assert all(torch.equal(value, body[name]) for name, value in task.loss.model.body.state_dict().items())
    assert not torch.equal(task.loss.model.head.weight, head) and summary["final"]["test_accuracy"] > 0.75


def test_digits_preset_trains_the_actors_own_network():
    actor = compose.compose()["network"]
    digits = compose.check(compose.compose(["experiment=digits"]))
    assert dict(actor) == digits["network"]
    assert type(build.build_task(digits).loss.model) is MLP


def test_fashion_mnist_preset_learns_from_a_folder(tmp_path):
    g = torch.Generator().manual_seed(0)
    looks = torch.rand(10, 28, 28, generator=g)
    for name, rows in zip(FASHION_MNIST_FILES, (600, 600, 100, 100), strict=True):
        labels = torch.arange(rows) % 10
        noise = torch.rand(rows, 28, 28, generator=g)
        array = (255 * (0.7 * looks[labels] + 0.3 * noise)).to(torch.uint8) if "images" in name else labels
        header = b"\x00\x00\x08" + bytes([array.dim()]) + struct.pack(f">{array.dim()}I", *array.shape)
        (tmp_path / name).write_bytes(header + array.to(torch.uint8).numpy().tobytes())
    folder = f"data.folder={tmp_path}"
    summary, _ = fit(["experiment=fashion_mnist", folder, "epochs=4", "task.batch_size=32"], tmp_path / "run")
    assert summary["final"]["test_accuracy"] > 0.95
