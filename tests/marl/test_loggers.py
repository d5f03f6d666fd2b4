"""Loggers: the CSV table widens and drops what a resume does again; TensorBoard files can be read back."""

import csv
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from marl.errors import UserError
from marl.loggers import CSVLogger, TensorBoardLogger, WandbLogger


def read(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_widens_and_resumes(tmp_path):
    log = CSVLogger()
    log.open(tmp_path, {}, 0, 0)
    log.log({"iteration": 1, "loss": 2.0}, 10)
    log.log({"iteration": 2, "loss": 1.0, "eval/loss": 3.0}, 20)
    log.log({"iteration": 3, "loss": 0.5}, 30)
    log.close()
    log = CSVLogger()
    log.open(tmp_path, {}, 2, 20)  # the checkpoint was made after iteration 2
    log.log({"iteration": 3, "loss": 0.25}, 30)
    log.close()
    table = read(tmp_path / "metrics.csv")
    assert [row["iteration"] for row in table] == ["1", "2", "3"]
    assert [row["loss"] for row in table] == ["2.0", "1.0", "0.25"]
    assert [row["eval/loss"] for row in table] == ["", "3.0", ""]


def test_tensorboard_can_be_read_back(tmp_path):
    log = TensorBoardLogger()
    log.open(tmp_path, {}, 0, 0)
    for step in (10, 20):
        log.log({"episode_return": float(step)}, step)
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("episode_return")] == [(10, 10.0), (20, 20.0)]


def test_missing_extra_is_one_sentence(monkeypatch):
    import builtins

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "wandb":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install -e '\.\[wandb\]'"):
        WandbLogger()


def test_event_files_stay_in_order_where_the_clock_was_set_back(tmp_path) -> None:
    for units, later in ((0, 7200), (2, 3600), (4, 0)):
        with pytest.MonkeyPatch.context() as patch:
            now = time.time() + later
            patch.setattr(time, "time", lambda now=now: now)
            logger = TensorBoardLogger()
            logger.open(tmp_path, {}, units, units)
            for step in (1, 2, 3):
                logger.log({"loss": float(units + step)}, units + step)
            logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6, 7]
