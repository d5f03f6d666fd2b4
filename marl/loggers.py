"""Loggers: where the numbers of a run go; each takes one flat record of floats per iteration."""

import csv
import os
import time
from pathlib import Path
from typing import Any

from marl.errors import UserError


class Logger:
    """Base class. `open` is called once with the run directory, the resolved config and the resume point."""

    def open(self, run_dir: Path, config: dict, iteration: int, units: int) -> None:
        """Start writing; records after `iteration` (`units` frames or epochs) left by a killed run are dropped."""

    def log(self, record: dict[str, float], step: int) -> None:
        """Write one record; `step` is the count of frames or epochs."""

    def flush(self) -> None:
        """Bring what was logged to the disk: a checkpoint follows, and its iterations won't be logged again."""

    def close(self) -> None:
        """Flush and close."""


class CSVLogger(Logger):
    """`metrics.csv` in the run directory: a row per iteration; a metric that appears later widens the table."""

    def open(self, run_dir, config, iteration, units):
        self.path = Path(run_dir) / "metrics.csv"
        self.rows: list[dict] = []
        self.columns: list[str] = []
        if iteration > 0 and self.path.is_file():
            with open(self.path, newline="") as file:
                whole = [line for line in file if line.endswith("\n")]  # a kill may have cut the last row short
            reader = csv.DictReader(whole)
            self.columns = list(reader.fieldnames or [])
            rows = [row for row in reader if row["iteration"] and float(row["iteration"]) <= iteration]
        else:
            rows = []
        self._rewrite(rows)

    def _rewrite(self, rows: list[dict]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            if self.columns:
                writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)
        self.file = open(self.path, "a", newline="")  # noqa: SIM115 (kept open for the run)

    def log(self, record, step):
        new = [key for key in record if key not in self.columns]
        if new:
            self.file.close()
            with open(self.path, newline="") as file:
                rows = list(csv.DictReader(file))
            self.columns += new
            self._rewrite(rows)
        csv.DictWriter(self.file, self.columns, restval="").writerow(record)
        self.file.flush()

    def flush(self):
        os.fsync(self.file.fileno())

    def close(self):
        self.file.close()


class TensorBoardLogger(Logger):
    """TensorBoard event files in the run directory; scalars over frames or epochs."""

    def open(self, run_dir, config, iteration, units):
        from torch.utils.tensorboard import SummaryWriter

        old = [path.name.split(".")[3] for path in Path(run_dir).glob("events.out.tfevents.*")]  # of a killed run
        while str(int(time.time())).zfill(10) in old:  # files are read in the order of their seconds
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


class WandbLogger(Logger):
    """Weights & Biases; keyword arguments go to `wandb.init`. Needs the extra `wandb`."""

    def __init__(self, project: str = "marl", mode: str = "online", kwargs: dict[str, Any] | None = None):
        self.project, self.mode, self.kwargs = project, mode, kwargs or {}
        self.wandb = _optional("wandb", "wandb")

    def open(self, run_dir, config, iteration, units):
        self.run = self.wandb.init(
            project=self.project, mode=self.mode, dir=str(run_dir), config=config, resume="allow", **self.kwargs
        )

    def log(self, record, step):
        self.run.log(record, step=step)

    def close(self):
        self.run.finish()


class MLflowLogger(Logger):
    """MLflow; `tracking_uri` null writes to the run directory. Needs the extra `mlflow`."""

    def __init__(self, experiment: str = "marl", tracking_uri: str | None = None):
        self.experiment, self.tracking_uri = experiment, tracking_uri
        self.mlflow = _optional("mlflow", "mlflow")

    def open(self, run_dir, config, iteration, units):
        default = f"sqlite:///{Path(run_dir).resolve() / 'mlflow.db'}"
        self.mlflow.set_tracking_uri(self.tracking_uri or default)
        self.mlflow.set_experiment(self.experiment)
        self.mlflow.start_run(run_name=Path(run_dir).name)
        self.mlflow.log_dict(config, "config.json")

    def log(self, record, step):
        self.mlflow.log_metrics(record, step=step)

    def close(self):
        self.mlflow.end_run()
