"""Runs scripts as commands: as processes of their own, or forked from this one, which has imported everything."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fixtures.warm_shell import become
from tests.trials.fuzzing.outcome import Outcome
from tests.trials.fuzzing.scripts import ROOT

SECONDS = 120  # that a command of a tiny budget may take; a machine that others use too is slow
MEMORY = 8 << 30  # bytes that a command may ask for: a fuzz must not take the machine down


def settings(cache: Path) -> dict[str, str]:
    """The environment of all commands: one thread, a kernel cache of their own, no home to write to."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW", "HYDRA", "MARL"))}
    variables = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "COLUMNS": "120",
        "WANDB_MODE": "offline",
    }
    return inherited | variables | {"MARL_KERNEL_CACHE": str(cache)}


def process(name: str, arguments: list[str], folder: Path, cache: Path, seconds: float = SECONDS) -> Outcome:
    """scripts/NAME.py as a user starts it."""
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    began = time.perf_counter()
    with open(folder.parent / "out", "wb") as out, open(folder.parent / "err", "wb") as err:
        started = subprocess.Popen(command, cwd=folder, env=settings(cache), stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=err, start_new_session=True, preexec_fn=_limit)  # fmt: skip
        try:
            code = started.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
    return _outcome(name, arguments, folder, code, began)


def fork(name: str, arguments: list[str], folder: Path, cache: Path, seconds: float = SECONDS) -> Outcome:
    """The same in a fork of this process: imports cost nothing, all else is the command's own."""
    began = time.perf_counter()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _limit()
        files = [str(folder.parent / file) for file in ("out", "err")]
        become(name, arguments, str(folder), files, settings(cache))
    end, code = time.monotonic() + seconds, None
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.005)
    else:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return _outcome(name, arguments, folder, code, began)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _outcome(name: str, arguments: list[str], folder: Path, code: int | None, began: float) -> Outcome:
    out, err = ((folder.parent / file).read_text(errors="replace") for file in ("out", "err"))
    command = ["python", f"scripts/{name}.py", *arguments]
    return Outcome(command, code, out, err, time.perf_counter() - began, str(folder))
