"""Loggers: where the numbers of a run go; each takes one flat record of floats per iteration."""

import csv
import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from marl.core.errors import UserError
from marl.core.files import write


class Logger:
    """Base class. `open` is called once with the run directory, the resolved config and the resume point."""

    def open(self, run_dir: Path, config: dict, iteration: int, units: int) -> None:
        """Start writing; records after `iteration` (`units` frames or epochs) left by a killed run are dropped."""

    def log(self, record: dict[str, float], step: int) -> None:
        """Write one record; `step` is the count of frames or epochs."""

    def flush(self) -> None:
        """Bring what was logged to the disk: a checkpoint follows, and its iterations won't be logged again."""

    def rescue(self, run_dir: Path, record: dict[str, float] | None = None, step: int = 0) -> None:
        """The run's directory was removed or moved: write what was logged, and `record`, in `run_dir` if possible."""

    def close(self) -> None:
        """Flush and close."""


class CSVLogger(Logger):
    """`metrics.csv` in the run directory: a row per iteration; a metric that appears later widens the table."""

    def open(self, run_dir, config, iteration, units):
        self.path = Path(run_dir) / "metrics.csv"
        self.rows: list[dict] = []
        self.columns: list[str] = []
        if iteration > 0 and self.path.is_file():
            try:
                with open(self.path, newline="", encoding="utf-8") as file:
                    whole = [line for line in file if line.endswith("\n")]  # a kill may have cut the last row short
                reader = csv.DictReader(whole)
                self.columns = list(reader.fieldnames or [])
                rows = [row for row in reader if row["iteration"] and float(row["iteration"]) <= iteration]
                if any(None in row for row in rows):
                    raise ValueError("a row has more fields than the header")
            except (ValueError, KeyError, csv.Error) as error:
                raise UserError(
                    f"{self.path}: is no table of a run's metrics ({type(error).__name__}: {error}); "
                    "move it away to continue without it"
                ) from error
        else:
            rows = []
        self._rewrite(rows)

    def _rewrite(self, rows: list[dict]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        if self.columns:
            writer.writeheader()
        writer.writerows(rows)
        write(self.path, text.getvalue().encode())
        self.file = open(self.path, "a+", newline="", encoding="utf-8")  # noqa: SIM115 (kept open for the run)

    def _logged(self) -> list[dict]:
        """The rows in the open file, also where it has no name any more."""
        self.file.seek(0)
        return list(csv.DictReader(self.file))

    def log(self, record, step):
        new = [key for key in record if key not in self.columns]
        if new:
            rows = self._logged()
            self.file.close()
            self.columns += new
            self._rewrite(rows)
        csv.DictWriter(self.file, self.columns, restval="").writerow(record)
        self.file.flush()

    def flush(self):
        if os.fstat(self.file.fileno()).st_nlink == 0:  # the table alone was removed
            self.rescue(self.path.parent)
        os.fsync(self.file.fileno())

    def rescue(self, run_dir, record=None, step=0):
        rows, self.path = self._logged(), Path(run_dir) / "metrics.csv"
        self.file.close()
        self._rewrite(rows)
        if record is not None:
            self.log(record, step)

    def close(self):
        self.file.close()


def _second(later: int = 0) -> str:
    """The present second as in the names of event files, or one so many seconds later."""
    return str(int(time.time()) + later).zfill(10)


class TensorBoardLogger(Logger):
    """TensorBoard event files in the run directory; scalars over frames or epochs."""

    def open(self, run_dir, config, iteration, units):
        from torch.utils.tensorboard import SummaryWriter

        old = sorted(Path(run_dir).glob("events.out.tfevents.*"))  # of a killed run; read in the order of their seconds
        if old and old[-1].name.split(".")[3] > _second(1):  # the clock was set back
            for i, path in enumerate(old):
                _, _, _, _, *rest = path.name.split(".")
                path.rename(path.with_name(".".join(["events.out.tfevents", _second(i - len(old)), *rest])))
        while old and old[-1].name.split(".")[3] >= _second() and old[-1].exists():
            time.sleep(0.05)
        self.writer = SummaryWriter(str(run_dir), purge_step=units + 1 if old else None)

    def log(self, record, step):
        for key, value in record.items():
            self.writer.add_scalar(key, value, step)

    def flush(self):
        self.writer.flush()

    def close(self):
        self.writer.close()


def _optional(module: str, extra: str):
    try:
        return __import__(module)
    except ImportError as error:
        raise UserError(f"logger.{extra}: {module} is not installed; run pip install -e '.[{extra}]'") from error


@contextmanager
def _told(logger: str, *errors: type[Exception], hint: str = "") -> Iterator[None]:
    """Turn what another library raises for a setting, a login or a server into one sentence."""
    try:
        yield
    except errors as error:
        message = " ".join(str(error).split())[:400].rstrip(".") or type(error).__name__
        raise UserError(f"logger.{logger}: {message}{hint}") from error


class WandbLogger(Logger):
    """Weights & Biases, in the run directory. Needs the extra `wandb`.

    project, mode: null leaves them to WANDB_PROJECT and WANDB_MODE, and without these to "marl" and to W&B's own
    default, online. kwargs: further arguments of `wandb.init`. Its other environment variables count as they do
    everywhere, but for the folder. Raises UserError for what W&B refuses, such as a missing login.
    """

    def __init__(
        self,
        project: str | None = None,
        mode: Literal["online", "offline", "disabled", "shared"] | None = None,
        kwargs: dict[str, Any] | None = None,
    ):
        self.project, self.mode, self.kwargs = project, mode, kwargs or {}
        self.wandb = _optional("wandb", "wandb")

    def open(self, run_dir, config, iteration, units):
        project = self.project or os.environ.get("WANDB_PROJECT") or "marl"
        mode = self.mode or os.environ.get("WANDB_MODE")  # W&B itself looks once in a process
        settings = {"project": project, "mode": mode, "dir": str(run_dir), "config": config, "resume": "allow"}
        hint = "; logger.wandb.mode=offline needs no login, and `wandb sync` uploads later"
        before = os.environ.get("WANDB_CACHE_DIR")
        os.environ["WANDB_CACHE_DIR"] = before or str(Path(run_dir).resolve() / "wandb" / "cache")
        try:
            with _told("wandb", self.wandb.errors.Error, TypeError, ValueError, hint=hint):
                self.run = self.wandb.init(**settings | self.kwargs)
        finally:
            if before is None:
                del os.environ["WANDB_CACHE_DIR"]

    def log(self, record, step):
        self.run.log(record, step=step)

    def close(self):
        if hasattr(self, "run"):
            self.run.finish()


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file, whatever characters its path has."""
    from sqlalchemy.engine import make_url

    plain = f"sqlite:///{path}"
    return plain if make_url(plain).database == str(path) else f"sqlite:///{quote(str(path))}"


class MLflowLogger(Logger):
    """MLflow; needs the extra `mlflow`.

    experiment, tracking_uri: null leaves them to MLFLOW_EXPERIMENT_NAME (or _ID) and MLFLOW_TRACKING_URI, and without
    these to "marl" and to an SQLite file in the run directory. What a run leaves beside its numbers lies beside an
    SQLite file, where MLflow would put it into the working directory. Raises UserError for what MLflow refuses.
    """

    def __init__(self, experiment: str | None = None, tracking_uri: str | None = None):
        self.experiment, self.tracking_uri = experiment, tracking_uri
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report its use to its makers
        self.mlflow = _optional("mlflow", "mlflow")
        from sqlalchemy.exc import SQLAlchemyError  # which MLflow brings

        self.refused = (self.mlflow.exceptions.MlflowException, SQLAlchemyError)

    def open(self, run_dir, config, iteration, units):
        mlflow, self.before = self.mlflow, os.environ.get("MLFLOW_TRACKING_URI")  # which the next line changes
        uri = self.tracking_uri or self.before or sqlite_url(Path(run_dir).resolve() / "mlflow.db")
        try:
            with _told("mlflow", *self.refused, OSError, ValueError):
                mlflow.set_tracking_uri(uri)
                mlflow.start_run(run_name=Path(run_dir).name, experiment_id=self._experiment(uri))
                mlflow.log_dict(config, "config.json")
        except UserError:
            self.close()
            raise

    def _experiment(self, uri: str) -> str:
        """The experiment's number. MLflow's own way of choosing one would hold for the next run in this process too."""
        from sqlalchemy.engine import make_url

        if (number := os.environ.get("MLFLOW_EXPERIMENT_ID")) and not self.experiment:
            return number
        name = self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "marl"
        if (known := self.mlflow.get_experiment_by_name(name)) is not None:
            return known.experiment_id
        if not uri.startswith("sqlite:///"):
            return self.mlflow.create_experiment(name)
        beside = Path(str(make_url(uri).database)).resolve().with_name("mlartifacts")
        return self.mlflow.create_experiment(name, artifact_location=beside.as_uri())

    def log(self, record, step):
        with _told("mlflow", *self.refused):
            self.mlflow.log_metrics(record, step=step)

    def close(self):
        if hasattr(self, "before"):
            self.mlflow.end_run()
            self.mlflow.set_tracking_uri(self.before)
