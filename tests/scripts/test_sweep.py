"""Sweeps by the command line: one after another, in parallel with a kill in the middle, and as Slurm would run them."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from marl.core.lock import running
from marl.launch.sweep_jobs import read

ROOT = Path(__file__).resolve().parent.parent.parent
JOB = ["-m", "experiment=threshold"]


def jobs(folder: Path) -> list[dict]:
    """The table that a sweep left in its folder."""
    with open(folder / "jobs.csv", newline="") as file:
        return list(csv.DictReader(file))


def status(folder: Path) -> list[str]:
    return [job["status"] for job in jobs(folder)]


def test_a_failed_job_ends_no_other_and_the_same_command_repeats_only_that(shell, tmp_path: Path) -> None:
    mine = tmp_path / "conf" / "logger" / "mine.yaml"  # configurations of one's own are found, too
    mine.parent.mkdir(parents=True)
    mine.write_text("csv:\n  _target_: marl.loggers.loggers.CSVLogger\n")
    command = ["--config-dir", "conf", *JOB, "logger=mine", "epochs=1", "seed=-1,0,1"]
    done = shell(tmp_path, "train", *command)
    (folder,) = tmp_path.glob("multirun/threshold/*")
    assert done.returncode == 2 and done.stderr == (
        "error: 1 of 3 jobs failed, the first with: seed=-1: must be at least 0\n"
    )
    assert status(folder) == ["failed", "done", "done"] and jobs(folder)[0]["reason"] == "seed=-1: must be at least 0"
    assert "2 done, 1 failed" in done.stdout and "seed=-1" in done.stdout
    assert "iteration 1/1" in (folder / "1" / "output.log").read_text()  # and not between the table's lines
    assert "iteration" not in done.stdout
    times = [(folder / str(i) / "summary.json").stat().st_mtime_ns for i in (1, 2)]
    again = shell(tmp_path, "train", *command)
    assert f"continuing {folder}: 2 of 3 jobs are done" in again.stdout and again.returncode == 2
    assert [(folder / str(i) / "summary.json").stat().st_mtime_ns for i in (1, 2)] == times
    assert len(list(tmp_path.glob("multirun/threshold/*"))) == 1


def test_a_mistake_in_composition_leaves_no_folder(shell, tmp_path: Path) -> None:
    done = shell(tmp_path, "train", *JOB, "hydra/launcher=jobli")
    assert done.returncode == 2 and done.stderr.startswith("error: hydra/launcher=jobli: no such option")
    assert not list(tmp_path.glob("multirun/*/*"))


def test_a_parallel_sweep_that_is_killed_half_way_is_continued(shell, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs pip install -e '.[sweep]'")
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *JOB, "epochs=60", "trainer.checkpoint_every=1"]
    command += ["seed=0,1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=s"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    started = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **started, start_new_session=True) as process:
        end, folder = time.monotonic() + 200, tmp_path / "s"
        while not any(read(job).get("status") == "done" for job in folder.glob("[0-9]")):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # the workers see that it is gone, write a checkpoint and end
    gone, left = psutil.wait_procs(workers, timeout=60)
    assert not left and len(gone) >= 2
    assert not any(running(folder / str(i)) for i in range(4))
    first = [i for i in range(4) if read(folder / str(i)).get("status") == "done"]
    times = {i: (folder / str(i) / "summary.json").stat().st_mtime_ns for i in first}
    assert 1 <= len(first) < 4
    done = shell(tmp_path, "train", *command[2:])
    assert done.returncode == 0 and status(folder) == ["done"] * 4
    assert "jobs are done" in done.stdout.splitlines()[0]
    assert all((folder / str(i) / "summary.json").stat().st_mtime_ns == time for i, time in times.items())
    for i in range(4):  # whole, whether continued or not
        with open(folder / str(i) / "metrics.csv", newline="") as file:
            assert [int(row["iteration"]) for row in csv.DictReader(file)] == list(range(1, 61))


DEADLY = '''"""Data whose reader is killed from outside, for one of its settings."""
import os, signal
from marl.data import Threshold

class Deadly(Threshold):
    """Threshold, unless it is 5."""
    def __init__(self, threshold: float = 8.0):
        if threshold == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        super().__init__(threshold)
'''


def test_a_killed_worker_ends_no_other_job(shell, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs pip install -e '.[sweep]'")
    files = {"deadly.py": DEADLY, "conf/data/deadly.yaml": "_target_: deadly.Deadly\nthreshold: 8.0\n"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=s"]
    sizes = ["data=deadly", "data.threshold=5,8", "epochs=1", "logger=csv"]
    done = shell(tmp_path, "train", "--config-dir", "conf", *JOB, *sizes, *parallel)
    assert done.returncode == 1 and status(tmp_path / "s") == ["failed", "done"]
    assert "1 of 2 jobs failed, the first with: its process was killed" in done.stderr


def test_the_slurm_path_works_without_slurm(shell, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install -e '.[sweep]'")
    sizes = ["epochs=1", "seed=0,-1", "hydra/launcher=submitit_local", "hydra.sweep.dir=s"]
    done = shell(tmp_path, "train", *JOB, *sizes)
    assert status(tmp_path / "s") == ["done", "failed"] and done.returncode == 2, done.stderr
    assert "seed=-1: must be at least 0" in done.stderr and (tmp_path / "s" / ".submitit").is_dir()
