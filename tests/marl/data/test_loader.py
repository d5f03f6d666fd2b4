"""Minibatches: samplers, workers, streams, mixup, and a resume in the midst of an epoch, bitwise identical."""

import itertools
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch.utils.data import Dataset

from marl.core.errors import UserError
from marl.core.seeding import generator, seed_global
from marl.data import ArrayData, CSVStream, Digits, Erase, Flip, Loader, Noise, Shift
from marl.data.augment import mixup
from marl.data.samplers import Order
from marl.engine.trainer import Trainer
from marl.losses.objectives import CrossEntropy
from marl.networks import MLP, Linear
from marl.optim.optimizer_config import OptimizerConfig
from marl.supervised.task import Supervised


def source(purpose: str = "x") -> torch.Generator:
    return generator(0, purpose)


def rows(count: int = 23) -> TensorDict:
    y = torch.arange(count) % 3 // 2  # two thirds of class 0
    return TensorDict({"x": torch.arange(count).float().view(-1, 1), "y": y}, batch_size=[count])


class Squares(Dataset):
    """A map-style data set: (x, x squared)."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([float(i)]), torch.tensor([float(i * i)])


def read(loader: Loader, epoch: int = 0) -> list[list[float]]:
    return [batch["x"].flatten().tolist() for batch in loader.epoch(epoch)]


SHARES = (("balanced", 0.5), ([1.0, 3.0], 0.25), ([1.0, 0.0], 0.0))  # of the rarer class, by weights


def test_samplers_take_the_rows_that_they_promise():
    assert sorted(Order(50).draw(source()).tolist()) == list(range(50))
    assert Order(50, "sequential").draw(source()).tolist() == list(range(50))
    listed = Order(50, "subset", subset=[3, 9, 30])
    assert sorted(listed.draw(source()).tolist()) == [3, 9, 30] and listed.length == 3
    share = Order(50, "subset", subset=0.2, deal=source("deal"))
    first, second = share.draw(source("a")), share.draw(source("b"))
    assert len(first) == 10 and sorted(first.tolist()) == sorted(second.tolist()) and first.tolist() != second.tolist()
    classes = torch.tensor([0] * 900 + [1] * 100)
    cases = itertools.product((classes, classes.view(-1, 1).float()), SHARES)
    for labels, (weights, expected) in cases:  # of classification, and of one binary output
        drawn = labels[Order(1000, "weighted", weights, labels=labels).draw(source())]
        assert drawn.float().mean().item() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "weighted"}, "task.sampler=weighted: needs task.weights"),
        ({"subset": 0.5}, "task.sampler=random: has no use for task.subset"),
        ({"sampler": "subset", "subset": [23]}, "task.subset=.*rows from 0 to 22"),
        ({"sampler": "weighted", "weights": [1.0]}, "1 numbers for 2 classes"),
        ({"sampler": "weighted", "weights": [0.0, 0.0]}, r"task.weights=\[0.0, 0.0\]: must be finite, and above 0"),
        ({"sampler": "weighted", "weights": [1.0, torch.inf]}, "must be finite, and above 0"),
    ],
)
def test_samplers_that_do_not_fit_are_one_sentence(settings, message):
    with pytest.raises(UserError, match=message):
        Loader(rows(), 4, seed=0, **settings)


def test_the_last_minibatch_may_be_dropped():
    complete, dropped = Loader(rows(), 5, seed=0), Loader(rows(), 5, seed=0, drop_last=True)
    assert [len(b) for b in read(complete)] == [5, 5, 5, 5, 3] and len(complete) == 5
    assert read(dropped) == read(complete)[:4] and len(dropped) == 4


@pytest.mark.parametrize("data", [rows(), Squares()], ids=["in memory", "map style"])
def test_workers_change_no_number_not_even_of_augmentation_and_mixup(data):
    settings = {"batch_size": 5, "seed": 4, "augment": [Noise(0.5)], "mixup": 0.4}
    plain, worked = Loader(data, **settings), Loader(data, workers=2, **settings)
    for epoch in (0, 1, 1):  # the workers stay from epoch to epoch
        for a, b in zip(plain.epoch(epoch), worked.epoch(epoch), strict=True):
            assert set(a.keys()) == set(b.keys()) == {"x", "y", "y2", "share"}
            assert all(torch.equal(a[key], b[key]) for key in a.keys())
    assert read(plain, 0) != read(plain, 1)


def test_batches_can_be_taken_from_the_midst_of_an_epoch_on():
    loader = Loader(rows(), 5, seed=0, augment=[Noise(0.1)])
    whole = [batch["x"].tolist() for epoch in range(3) for batch in loader.epoch(epoch)]
    assert [batch["x"].tolist() for batch in loader.span(3, 9)] == whole[3:12]


def test_a_minibatch_that_leaves_nothing_is_refused():
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    data = ArrayData("regression", 1, (x, y), (x, y))
    with pytest.raises(UserError, match="drop_last leaves nothing"):
        Supervised(data, Linear, torch.nn.MSELoss(), 1, 15, sampler="subset", subset=0.5, drop_last=True)


# ---- augmentation --------------------------------------------------------------------------------------------


def test_augmentations_change_what_they_say():
    x = torch.arange(2 * 9.0).view(2, 1, 3, 3) + 1
    shifted = Shift(1)(x.expand(2, 1, 3, 3).repeat(50, 1, 1, 1), source())
    assert shifted.shape == (100, 1, 3, 3) and len({tuple(s.flatten().tolist()) for s in shifted[::2]}) == 9
    assert any(torch.equal(s[0, :2, :], x[0, 0, 1:, :]) for s in shifted[::2])  # one up, zeros below
    assert torch.equal(Flip(1.0)(x, source()), x.flip(-1))
    erased = Erase(2)(x, source())
    assert (erased == 0).sum().item() == 2 * 4 and torch.equal(erased[erased != 0], x[erased != 0])
    noise = Noise(0.5)(torch.zeros(4000, 2), source())
    assert noise.std().item() == pytest.approx(0.5, rel=0.05)
    with pytest.raises(UserError, match="task.augment: Flip takes pictures"):
        Flip()(torch.zeros(3, 4), source())


def test_mixup_mixes_rows_and_the_loss_their_targets():
    batch = TensorDict({"x": torch.eye(6), "y": torch.arange(6)}, batch_size=[6])
    mixed = mixup(batch, 1.0, seed=3)
    share = mixed["share"][0]
    assert 0 < share < 1
    torch.testing.assert_close(mixed["x"], share * torch.eye(6) + (1 - share) * torch.eye(6)[mixed["y2"]])
    data = ArrayData("classification", 6, (batch["x"], batch["y"]), (batch["x"], batch["y"]), normalise=False)
    task = Supervised(data, Linear, CrossEntropy(), 1, 6)
    logits = task.loss.outputs(mixed["x"])
    target = share * torch.eye(6) + (1 - share) * torch.eye(6)[mixed["y2"]]
    expected = -(target * logits.log_softmax(-1)).sum(-1).mean()  # the cross-entropy with mixed targets
    torch.testing.assert_close(task.loss(mixed)["loss"], expected)


# ---- exact resume ----------------------------------------------------------------------------------------------


def digits(workers: int) -> Supervised:
    seed_global(5)
    settings = {"augment": [Shift(1)], "mixup": 0.4, "workers": workers, "batches_per_iteration": 7}
    network = partial(MLP, hidden=[16], dropout=0.2)
    return Supervised(Digits(), network, CrossEntropy(), epochs=2, seed=5, **settings)  # 19 batches an epoch


def fit(task, folder, **settings) -> Trainer:
    resume = settings.pop("resume", None)
    trainer = Trainer(progress="off", evaluate_every=0, checkpoint_every=1, average="ema", **settings)
    trainer.fit(task, folder, optimizer=OptimizerConfig(lr=1e-3), seed=5, resume=resume)
    return trainer


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    task, folder = digits(0), tmp_path_factory.mktemp("whole")
    seed_global(6)
    fit(task, folder)
    return task


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (0, 2)])
def test_resume_in_mid_epoch_is_the_uninterrupted_run_to_the_bit(tmp_path, uninterrupted, before, after):
    assert uninterrupted.iterations == 6 and uninterrupted.unit == "batches"
    half = digits(before)
    seed_global(6)
    fit(half, tmp_path, max_iterations=4)  # 28 batches: in the second epoch
    seed_global(7)  # a new process has other streams: the checkpoint must bring them back
    rest = digits(after)
    trainer = fit(rest, tmp_path, resume=tmp_path / "checkpoints" / "last.pt")
    assert trainer.units == 42
    for name, value in uninterrupted.loss.state_dict().items():
        assert torch.equal(value, rest.loss.state_dict()[name]), name
    assert rest.evaluate() == uninterrupted.evaluate()


# ---- streams ----------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """A CSV file of y = 2a − b, 40 rows."""
    path = tmp_path / "table.csv"
    lines = [f"{a},{a % 7},{2 * a - a % 7}" for a in range(40)]
    path.write_text("\n".join(["a,b,y", *lines]) + "\n")
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_every_row_once_in_an_order_per_epoch(table, workers):
    data = CSVStream(str(table), "y", validation=0.25, buffer=8)
    assert (len(data), len(data.validation)) == (30, 10)
    plain = Loader(data, 4, seed=1)
    epochs = [[row for batch in Loader(data, 4, 1, workers=workers).epoch(e) for row in batch["x"][:, 0].tolist()]
              for e in range(2)]  # fmt: skip
    assert sorted(epochs[0]) == sorted(epochs[1]) == [a for a in range(40) if a % 4]
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])
    whole = [batch["x"].tolist() for e in range(2) for batch in plain.epoch(e)]
    assert [batch["x"].tolist() for batch in Loader(data, 4, 1, workers=workers).span(3, 8)] == whole[3:11]


def test_a_stream_is_scaled_by_its_training_rows_and_learned(table, tmp_path):
    data = CSVStream(str(table), "y", validation=0.25)
    training_rows = torch.tensor([[float(a), float(a % 7)] for a in range(40) if a % 4])
    torch.testing.assert_close(data.shift, training_rows.mean(0))
    torch.testing.assert_close(data.scale, training_rows.std(0, correction=0))
    task = Supervised(data, Linear, torch.nn.MSELoss(), epochs=60, batch_size=10)
    trainer = Trainer(progress="off", evaluate_every=0, checkpoint_every=0)
    trainer.fit(task, tmp_path / "run", optimizer=OptimizerConfig(lr=0.05))
    assert task.evaluate()["loss"] < 1.0  # the targets' variance is about 500
    with pytest.raises(UserError, match="a stream has no numbered rows"):
        Loader(data, 4, 0, sampler="sequential")
    with pytest.raises(UserError, match=r"data\.target=\['z'\]: .*columns a, b, y"):
        CSVStream(str(table), "z")
    table.write_text("a,y\n1,2\nhello,3\n")
    with pytest.raises(UserError, match="line 3, column 'a': 'hello' is no number"):
        CSVStream(str(table), "y")


def test_pinned_memory_changes_no_number_and_is_pinned_where_there_is_a_gpu():
    settings = {"batch_size": 5, "seed": 4, "mixup": 0.3}
    plain, pinned = Loader(rows(), **settings), Loader(rows(), **settings, pin_memory=True)
    for a, b in zip(plain.epoch(0), pinned.epoch(0), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a.keys())
        assert b["x"].is_pinned() == torch.cuda.is_available()
