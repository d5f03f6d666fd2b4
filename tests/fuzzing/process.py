"""Runs scripts as commands: as processes of their own, or forked from this one, which has imported everything."""

import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from tests.fuzzing.outcome import Outcome
from tests.fuzzing.scripts import ROOT

SECONDS = 120  # that a command of a tiny budget may take; a machine that others use too is slow
MEMORY = 8 << 30  # bytes that a command may ask for: a fuzz must not take the machine down


def settings(cache: Path) -> dict[str, str]:
    """The environment of all commands: one thread, a kernel cache of their own, no home to write to."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "MLFLOW", "HYDRA", "MARL"))}
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "120",
    "WANDB_MODE": "offline"}
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
        _become(name, arguments, folder, settings(cache))
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


def _become(name: str, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Turn this fork into the command; never returns."""
    code = 1
    try:
        os.setsid()
        for number, file in ((1, "out"), (2, "err")):
            opened = os.open(folder.parent / file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode, closefd=False) for n, mode in ((0, "r"), (1, "w"), (2,
        "w")))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _limit()
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        script = ROOT / "scripts" / f"{name}.py"
        sys.argv, sys.path[:1] = [str(script), *arguments], [str(script.parent)]
        try:
            runpy.run_path(str(script), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _outcome(name: str, arguments: list[str], folder: Path, code: int | None, began: float) -> Outcome:
    out, err = ((folder.parent / file).read_text(errors="replace") for file in ("out", "err"))
    command = ["python", f"scripts/{name}.py", *arguments]
    return Outcome(command, code, out, err, time.perf_counter() - began, str(folder))
