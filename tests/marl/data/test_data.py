"""Data sets: splits, scaling, what is in the files, what the made sets promise, and the shuffled batches."""

import gzip
import struct
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from marl.core.errors import UserError
from marl.data import (
    ArrayData,
    Digits,
    FashionMNIST,
    LinearRegression,
    Loader,
    LogisticRegression,
    Sine,
    Threshold,
)
from marl.data.base import split
from marl.data.images import FASHION_MNIST_FILES, read_idx

CLOTHES = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


@pytest.mark.parametrize("labelled", [False, True])
def test_split_is_disjoint_complete_proportional_and_seeded(labelled):
    labels = torch.arange(1000) % 10 if labelled else None
    fractions = {"data.validation": 0.15, "data.test": 0.2}
    rows = split(1000, fractions, 3, labels)
    assert torch.cat(rows).sort().values.tolist() == list(range(1000))
    assert [len(part) for part in rows] == pytest.approx([650, 150, 200], abs=1)
    if labelled:
        for part in rows:
            counts = labels[part].bincount(minlength=10)
            assert counts.max() - counts.min() <= 1
    again, other = split(1000, fractions, 3, labels), split(1000, fractions, 4, labels)
    assert all(torch.equal(a, b) for a, b in zip(rows, again, strict=True))
    assert not torch.equal(rows[1].sort().values, other[1].sort().values)


def test_split_without_training_rows_names_the_keys():
    with pytest.raises(UserError, match=r"data\.validation=0\.6 \+ data\.test=0\.4: leaves no rows"):
        split(10, {"data.validation": 0.6, "data.test": 0.4}, 0)


def test_digits_are_the_real_ones_with_every_class_in_every_split():
    data = Digits()
    splits = [data.train, data.validation, data.test]
    assert sum(map(len, splits)) == 1797
    assert data.in_shape == (1, 8, 8) and data.out_features == 10 and data.kind == "classification"
    for part in splits:
        share = part["y"].bincount(minlength=10) / len(part)
        assert share.min() > 0.085 and share.max() < 0.115
        assert part["x"].dtype == torch.float32 and part["y"].dtype == torch.int64
    assert data.train["x"].max() == 16


def test_scaling_comes_from_the_training_split_alone():
    train = torch.tensor([[0.0, 5.0], [2.0, 5.0]])
    far = torch.full((3, 2), 1e6)
    data = ArrayData("regression", 1, (train, torch.zeros(2)), (far, torch.zeros(3)), (far, torch.zeros(3)))
    assert data.shift.tolist() == [1.0, 5.0]
    assert data.scale.tolist() == [1.0, 1.0]  # a constant feature is not divided by 0


def test_images_are_scaled_per_channel():
    x = torch.randn(50, 3, 4, 4) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1)
    data = ArrayData("classification", 2, (x, torch.zeros(50)), (x, torch.zeros(50)))
    assert data.shift.shape == data.scale.shape == (3, 1, 1)
    scaled = (x - data.shift) / data.scale
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3), correction=0), torch.ones(3))


@pytest.mark.parametrize(("inputs", "targets"), [(0, 0), (3, 2)])
def test_splits_must_match_and_hold_rows(inputs, targets):
    good = (torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(UserError, match=f"{inputs} inputs and {targets} targets in validation"):
        ArrayData("regression", 1, good, (torch.zeros(inputs, 1), torch.zeros(targets)))


def idx(array: torch.Tensor) -> bytes:
    """An IDX file of unsigned bytes, written by the format's own definition."""
    header = b"\x00\x00\x08" + bytes([array.dim()]) + struct.pack(f">{array.dim()}I", *array.shape)
    return header + array.to(torch.uint8).numpy().tobytes()


@pytest.fixture
def clothes():
    """Contents for the four files: 24 training and 6 test pictures of 28×28 pixels."""
    g = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 256, (n, 28, 28), generator=g) if "images" in name else torch.arange(n) % 10
        for name, n in zip(FASHION_MNIST_FILES, (24, 24, 6, 6), strict=True)
    }


@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_reads_its_files(tmp_path, clothes, zipped):
    for name, array in clothes.items():
        path, content = tmp_path / (name + ".gz" * zipped), idx(array)
        path.write_bytes(gzip.compress(content, mtime=0) if zipped else content)
    data = FashionMNIST(str(tmp_path), validation=0.25)
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 6, 6)
    assert data.in_shape == (1, 28, 28)
    torch.testing.assert_close(data.test["x"][:, 0] * 255, clothes[FASHION_MNIST_FILES[2]].float())
    assert data.test["y"].tolist() == clothes[FASHION_MNIST_FILES[3]].tolist()
    scaled_back = torch.cat([data.train["x"], data.validation["x"]])[:, 0] * 255
    labels = torch.cat([data.train["y"], data.validation["y"]])
    pictures = clothes[FASHION_MNIST_FILES[0]].float()
    for picture, label in zip(scaled_back, labels, strict=True):  # each picture kept its label through the split
        index = (pictures - picture).abs().sum(dim=(1, 2)).argmin()
        torch.testing.assert_close(pictures[index], picture)
        assert index % 10 == label


@pytest.mark.skipif(not CLOTHES.is_dir(), reason=f"no {CLOTHES}: apt install dataset-fashion-mnist")
def test_the_real_fashion_mnist() -> None:
    data = FashionMNIST(str(CLOTHES))
    x, y = (torch.cat([split[key] for split in (data.train, data.validation)]) for key in "xy")
    assert x.shape == (60_000, 1, 28, 28) and data.test["x"].shape == (10_000, 1, 28, 28)
    assert y.bincount().tolist() == [6_000] * 10 and data.test["y"].bincount().tolist() == [1_000] * 10
    assert x.mean() == pytest.approx(0.2860, abs=1e-4)  # known of the data set
    assert x.std() == pytest.approx(0.3530, abs=1e-4)


def test_fashion_mnist_names_the_folder_and_the_missing_files(tmp_path, clothes):
    present = FASHION_MNIST_FILES[0]
    (tmp_path / present).write_bytes(idx(clothes[present]))
    with pytest.raises(UserError) as error:
        FashionMNIST(str(tmp_path))
    assert str(CLOTHES) in str(error.value)
    lacks, expected = str(error.value).split(";")
    assert str(tmp_path) in lacks and present not in lacks
    assert all(name in lacks for name in FASHION_MNIST_FILES[1:])
    assert all(name in expected for name in FASHION_MNIST_FILES)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("page", b"<html>", "no IDX file of unsigned bytes; it starts with 3c68746d"),
        ("short", idx(torch.zeros(2, 3))[:-1], r"does not hold the shape \[2, 3\]"),
        ("header", b"\x00\x00\x08\x03\x00", "ends within its header"),
        ("cut.gz", gzip.compress(idx(torch.zeros(20, 30)), mtime=0)[:-9], "no complete IDX file"),
        ("page.gz", b"<html>", "no complete IDX file"),
    ],
)
def test_broken_idx_files_are_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_idx(path)


def test_threshold_trains_on_whole_numbers_and_asks_about_others():
    data = Threshold()
    assert data.train["x"].flatten().tolist() == list(range(-2, 21))
    assert data.train["y"].flatten().tolist() == [0.0] * 11 + [1.0] * 12
    for part in (data.validation, data.test):
        assert not (part["x"] == part["x"].round()).any()
        assert torch.equal(part["y"], (part["x"] > 8).float())
    assert data.test["x"].min() < -15 and data.test["x"].max() > 35
    with pytest.raises(UserError, match=r"data\.threshold=30"):
        Threshold(threshold=30.0)


def test_sine_has_the_noise_it_states_and_a_clean_test():
    data = Sine(samples=4000, noise=0.3)
    residual = data.train["y"] - data.train["x"].sin()
    assert residual.std().item() == pytest.approx(0.3, rel=0.05)
    torch.testing.assert_close(data.test["y"], data.test["x"].sin())


def test_linear_regression_is_made_by_its_stated_truth():
    data = LinearRegression(noise=0.0)
    torch.testing.assert_close(data.train["x"] @ data.weight.unsqueeze(1) + data.bias, data.train["y"])


def test_logistic_regression_draws_labels_with_its_stated_probability():
    data = LogisticRegression(samples=20_000)
    p = (data.train["x"] @ data.weight.unsqueeze(1) + data.bias).sigmoid()
    for low in (0.0, 0.25, 0.5, 0.75):
        rows = (p >= low) & (p < low + 0.25)
        assert data.train["y"][rows].mean().item() == pytest.approx(p[rows].mean().item(), abs=0.04)
    right = (data.test["x"] @ data.weight.unsqueeze(1) + data.bias > 0) == (data.test["y"] > 0.5)
    assert right.float().mean().item() == pytest.approx(data.best_accuracy)


def numbered(rows: int) -> TensorDict:
    return TensorDict({"x": torch.arange(rows)}, batch_size=[rows])


def test_batches_hold_every_row_once_in_an_order_per_epoch():
    loader = Loader(numbered(10), batch_size=4, seed=0)
    epochs = [[batch["x"].tolist() for batch in loader.epoch(epoch)] for epoch in range(3)]
    assert len(loader) == 3
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(sum(batches, [])) == list(range(10))
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_depends_on_seed_and_epoch_alone():
    used, fresh = (Loader(numbered(50), 8, seed=1) for _ in range(2))
    for epoch in range(5):
        list(used.epoch(epoch))
        torch.rand(3)  # the global stream must not matter
    assert torch.equal(used.permutation(5), fresh.permutation(5))  # as after a resume at epoch 5
    assert not torch.equal(fresh.permutation(5), Loader(numbered(50), 8, seed=2).permutation(5))
