"""The sides of a comparison as processes kept alive and asked in turn, so that only one works at a time."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = ROOT / "scripts" / "peers"
PATIENCE = 600.0  # seconds without an answer after which a side is given up


class SideError(RuntimeError):
    """A side ended or fell silent; the message holds the end of what it said."""


class Missing(SideError):
    """A peer whose environment is not there."""


class Side:
    """A process that answers one JSON line to each (scripts/peers/line.py).

    python: the interpreter of the side's virtual environment. script: a file of scripts/peers.
    environment: variables beside this process's; None takes one away.
    `ready` is what it said once it had started: at least `seconds`, which starting took.
    """

    def __init__(
        self, python: str | Path, script: str, *arguments: object, environment: dict[str, str | None] | None = None
    ):
        self.name = script
        self.folder = tempfile.TemporaryDirectory(prefix="benchmark_")
        self.stderr = open(Path(self.folder.name) / "stderr", "w+")
        self.began = time.perf_counter()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        variables = os.environ | {"PYTHONPATH": path} | (environment or {})
        self.process = subprocess.Popen(
            [str(python), str(PEERS / script), *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, text=True, bufsize=1,
            cwd=self.folder.name, env={key: value for key, value in variables.items() if value is not None},
        )  # fmt: skip
        self.answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if line.startswith("{"):
                self.answers.put(line)
        self.answers.put(None)

    def __enter__(self) -> "Side":
        try:
            self.ready = self.answer()
        except BaseException:
            self.close()
            raise
        self.ready["seconds"] = time.perf_counter() - self.began
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.close()

    def answer(self, patience: float = PATIENCE) -> dict:
        """The next line. Raises SideError if the process ends or says nothing for `patience` seconds."""
        try:
            line = self.answers.get(timeout=patience)
        except queue.Empty:
            raise SideError(f"{self.name} said nothing for {patience:.0f} s") from None
        if line is None:
            self.stderr.seek(0)
            last = [text for text in self.stderr.read().splitlines() if text.strip()][-3:]
            raise SideError(f"{self.name} ended (exit code {self.process.wait()}): {' / '.join(last)}")
        return json.loads(line)

    def ask(self, **command) -> dict:
        """Send a command and wait for its answer."""
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it ended: `answer` says why
        return self.answer()

    def close(self) -> None:
        """End the process (it ends by itself when its line is closed) and remove its folder."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.stderr.close()
        self.folder.cleanup()


@contextlib.contextmanager
def together(*started: Side) -> Iterator[None]:
    """Wait until all have started, end all of them afterwards; they start at the same time, and are asked in turn."""
    try:
        for side in started:
            side.__enter__()
        yield
    finally:
        for side in started:
            side.close()


def interpreter(peers: Path, name: str) -> Path:
    """The Python of a peer's virtual environment below `peers`. Raises Missing."""
    path = peers / name / "bin" / "python"
    if not path.exists():
        raise Missing(f"{path} is not there: `make peers` makes it (or --peers names another folder)")
    return path


def ours(*arguments: object, **settings) -> Side:
    """Our own side, in this interpreter."""
    return Side(sys.executable, "ours_side.py", *arguments, **settings)


def benchmarl(peers: Path, *arguments: object, environment: dict[str, str | None] | None = None) -> Side:
    """BenchMARL's side."""
    quiet = {"RL_LOGGING_LEVEL": "ERROR", "PYTHONPATH": "", "PYTHONWARNINGS": "ignore", **(environment or {})}
    return Side(interpreter(peers, "benchmarl"), "benchmarl_side.py", *arguments, environment=quiet)


def torchrl(*arguments: object) -> Side:
    """TorchRL's collector, from our own environment."""
    quiet = {"RL_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
    return Side(sys.executable, "torchrl_side.py", *arguments, environment=quiet)


def jaxmarl(peers: Path, *arguments: object) -> Side:
    """JaxMARL's side, on the CPU."""
    alone = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
    return Side(interpreter(peers, "jax"), "jaxmarl_side.py", *arguments, environment=alone)
