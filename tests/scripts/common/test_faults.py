"""What the command line says, and exits with, when a disk is full, a signal comes or a run diverges."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marl.checkpoints import checkpoint_file
from marl.core.errors import Diverged, LostProcess, Stopped
from marl.launch import cli

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (Diverged("iteration 3: loss is nan"), 3, "error: iteration 3: loss is nan\n"),
        (LostProcess("process 0 of 2: gone"), 4, "error: process 0 of 2: gone\n"),
        (Stopped(signal.SIGUSR1, 7), 138, "SIGUSR1: stopped after iteration 7; resume=RUN_DIR continues from there\n"),
        (OSError(errno.ENOSPC, "No space", "metrics.csv"), 2, "error: cannot write metrics.csv: No space"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(error, code, message, capsys) -> None:
    with pytest.raises(SystemExit) as stop, cli.guard():
        raise error
    assert stop.value.code == code and capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    ("error", "again", "message"),
    [
        (KeyboardInterrupt(), "", "interrupted\n"),
        (KeyboardInterrupt(), cli.SAME_COMMAND, "interrupted; the same command continues\n"),
        (KeyboardInterrupt(), cli.RESUME, "interrupted; resume=RUN_DIR continues from the last checkpoint\n"),
        (Stopped(signal.SIGINT, 7), "go on", "SIGINT: stopped after iteration 7; go on\n"),
        (OSError(errno.EISDIR, "Is", "a"), "", "error: cannot write a: it is a folder, not a file\n"),
        (OSError(errno.EISDIR, "Is", ".a.tmp", None, "a"), "", "error: cannot write a: it is a folder, not a file\n"),
        (OSError(errno.EEXIST, "Is", "a"), "", "error: cannot write a: it is a file, not a folder\n"),
        (OSError(errno.EROFS, "No", "a"), cli.RESUME, "error: cannot write a: No; earlier checkpoints are untouched\n"),
    ],
)
def test_what_is_said_fits_the_script(error, again, message, capsys) -> None:
    with pytest.raises(SystemExit), cli.guard(again=again):
        raise error
    assert capsys.readouterr().err == message


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(FileNotFoundError), cli.guard():
        raise FileNotFoundError(errno.ENOENT, "none", "x")


def test_a_disk_that_fills_up_leaves_good_checkpoints(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=300k none {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "sh", "-c", mount]).returncode:
        pytest.skip("this machine lets no user mount a small file system")
    train = f"{sys.executable} {ROOT}/scripts/train.py experiment=threshold logger=csv hydra.run.dir={tmp_path}"
    settings = "trainer.checkpoint_every=1 trainer.keep_every=1 trainer.progress=off trainer.evaluate_every=0"
    load = "from marl.checkpoints import checkpoint_file; print('good', checkpoint_file.newest('.')[1]['iteration'])"
    run = f'{mount} && cd {tmp_path}; {train} {settings}; echo "exit $?"; {sys.executable} -c "{load}"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", run], env=ENVIRONMENT, capture_output=True, text=True)
    assert "exit 2" in done.stdout, done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot write" in message and "No space left on device" in message and "untouched" in message
    assert "Traceback" not in done.stderr
    assert int(done.stdout.split("good ")[1]) >= 5


def test_a_directory_that_cannot_be_made(shell, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = shell(tmp_path, "train", "experiment=threshold", "hydra.run.dir=file/run")
    assert done.returncode == 2 and "cannot write" in done.stderr and "Traceback" not in done.stderr


def test_sigterm_then_resume(shell, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "train.py")]
    settings = ["experiment=threshold", "epochs=1000000", "trainer.checkpoint_every=1", "hydra.run.dir=run"]
    options = dict(cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen([*command, *settings], **options)
    last, end = tmp_path / "run" / "checkpoints" / "last.pt", time.monotonic() + 120
    while not last.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 143 and "SIGTERM: stopped after iteration" in errors and "Traceback" not in errors
    done = checkpoint_file.load(last)["iteration"]
    again = shell(tmp_path, "train", "resume=run", f"trainer.max_iterations={done + 2}")
    assert again.returncode == 0, again.stderr
    assert f"resuming after iteration {done}\n  trainer.max_iterations: null -> {done + 2}" in again.stdout
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == done + 3
