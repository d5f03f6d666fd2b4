"""Loggers: the CSV table widens and drops what a resume does again; what the others wrote can be read back."""

import csv
import os
import struct
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from marl.core.errors import UserError
from marl.loggers.loggers import CSVLogger, MLflowLogger, TensorBoardLogger, WandbLogger, sqlite_url


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


@pytest.fixture
def away(tmp_path, monkeypatch):
    """A working directory and a home of their own, which are to stay empty, and none of the loggers' variables."""
    for folder in ("work", "home"):
        (tmp_path / folder).mkdir()
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def strays(away) -> list[str]:
    return [str(path.relative_to(away)) for name in ("work", "home") for path in (away / name).rglob("*")]


def wandb_records(path: Path):
    """The records of W&B's transaction log: LevelDB's log format in blocks of 32 KiB, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        at += left if (left := -at % 32768) < 7 else 0  # no header is cut in two
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.parametrize("by", ["key", "environment"])
def test_wandb_offline_is_read_back_from_the_run_directory(away, monkeypatch, by):
    pytest.importorskip("wandb")
    if by == "environment":
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_PROJECT", "theirs")
    log = WandbLogger(mode="offline", project="ours") if by == "key" else WandbLogger()
    run = away / "a run=1"
    run.mkdir()
    log.open(run, {"algo": {"lr": 0.5}}, 0, 0)
    for step in (10, 20):
        log.log({"episode_return": step / 4, "eval/loss": 1.0}, step)
    log.close()
    (file,) = run.rglob("*.wandb")
    deadline, records = time.monotonic() + 30, []  # W&B's own process writes on after `finish`
    while not any(record.HasField("exit") for record in records):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        records = list(wandb_records(file))
    steps = [record.history.item for record in records if record.history.item]
    history = [{"/".join(item.nested_key) or item.key: item.value_json for item in items} for items in steps]
    assert [(row["_step"], row["episode_return"]) for row in history] == [("10", "2.5"), ("20", "5")]
    (wandb_run,) = [record.run for record in records if record.HasField("run")][:1]
    assert wandb_run.project == ("ours" if by == "key" else "theirs")
    assert {c.key: c.value_json for c in wandb_run.config.update}["algo"] == '{"lr":0.5}'
    assert strays(away) == [] and "WANDB_CACHE_DIR" not in os.environ


def test_wandb_without_a_login_is_one_sentence(away):
    pytest.importorskip("wandb")
    with pytest.raises(UserError, match=r"logger\.wandb: No API key.*logger\.wandb\.mode=offline") as error:
        WandbLogger().open(away / "work", {}, 0, 0)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="logger.wandb: .*nonsense"):
        WandbLogger(mode="offline", kwargs={"nonsense": 1}).open(away / "work", {}, 0, 0)


def test_mlflow_is_read_back_from_an_sqlite_file_in_the_run_directory(away, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    for name in ("first, lr=1", "second #ü"):  # one after the other in one process, as a sweep's jobs
        run = away / name
        run.mkdir()
        log = MLflowLogger()
        log.open(run, {"algo": {"lr": 0.5}}, 0, 0)
        for step in (10, 20):
            log.log({"episode_return": step / 4, "eval/loss": float("nan")}, step)
        log.close()
        assert "MLFLOW_TRACKING_URI" not in os.environ
        client = MlflowClient(sqlite_url(run / "mlflow.db"))
        (done,) = client.search_runs([client.get_experiment_by_name("marl").experiment_id])
        points = client.get_metric_history(done.info.run_id, "episode_return")
        assert [(point.step, point.value) for point in points] == [(10, 2.5), (20, 5.0)]
        assert (done.info.run_name, done.info.status) == (name, "FINISHED")
        (path,) = run.rglob("config.json")
        assert "mlartifacts" in path.parts and '"lr": 0.5' in path.read_text()
    assert mlflow.active_run() is None and strays(away) == []


def test_mlflow_heeds_its_environment_unless_a_key_is_set(away, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    theirs, ours = (f"sqlite:///{away}/{name}.db" for name in ("theirs", "ours"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", theirs)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    for log in (MLflowLogger(), MLflowLogger("by key", ours)):
        (away / "run").mkdir(exist_ok=True)
        log.open(away / "run", {}, 0, 0)
        log.log({"loss": 1.0}, 1)
        log.close()
    assert os.environ["MLFLOW_TRACKING_URI"] == theirs
    for uri, name in ((theirs, "from the environment"), (ours, "by key")):
        names = {experiment.name for experiment in MlflowClient(uri).search_experiments()}
        assert names - {"Default"} == {name}
    assert not (away / "run" / "mlflow.db").exists() and strays(away) == []


def test_what_mlflow_refuses_is_one_sentence(away):
    pytest.importorskip("mlflow")
    for uri in ("nonsense://x", f"sqlite:///{away}/work"):
        with pytest.raises(UserError, match=r"logger\.mlflow: ") as error:
            MLflowLogger(tracking_uri=uri).open(away, {}, 0, 0)
        assert "\n" not in str(error.value) and "MLFLOW_TRACKING_URI" not in os.environ
