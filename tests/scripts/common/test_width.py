"""On a terminal of 80 columns nothing that is printed is wider; in a file lines stay whole."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from marl.callbacks.progress import describe
from marl.core import terminal
from tests.fixtures.runs import TINY, make_run

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def widest(text: str) -> str:
    """The widest line as a terminal shows it."""
    return max(re.split(r"[\r\n]+", ESCAPES.sub("", text)), key=len)


def in_a_terminal(folder: Path, columns: int, *command: str) -> str:
    """What a command prints to a terminal so wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    output = b""
    try:
        while part := os.read(ours, 65536):
            output += part
    except OSError:  # the terminal's other end is closed
        pass
    finally:
        os.close(ours)
    assert process.wait(60) == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize("progress", ["auto", "plain"])
def test_training_fits_into_80_columns(progress: str, tmp_path: Path) -> None:
    small = [text for text in TINY if not text.startswith("trainer.progress")]
    small += ["env=vmas/navigation", f"trainer.progress={progress}", "hydra.run.dir=run"]
    output = in_a_terminal(tmp_path, 80, sys.executable, str(ROOT / "scripts" / "train.py"), *small)
    assert "critics.agents.network" in output and "eval/episode_return" in output and "results in" in output
    lines = output.splitlines(True)
    output = "".join(line for line in lines if "; results in" not in line and " ckpt=" not in line)  # paths: whole
    assert len(widest(output)) <= 80, widest(output)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_fits_into_80_columns(name: str, script, monkeypatch, capsys) -> None:
    document = script(name).__doc__
    monkeypatch.setenv("COLUMNS", "80")
    assert len(widest(terminal.fit(document))) <= 80
    assert terminal.fit(document).split() == document.split()
    monkeypatch.delenv("COLUMNS")
    assert terminal.fit(document) == document  # pytest's output is no terminal


def test_tables_fold_and_lose_nothing(script, tmp_path: Path, monkeypatch, capsys) -> None:
    run = make_run(tmp_path / "a_run_with_quite_a_long_name_as_they_are_in_reality", "env=vmas/navigation")
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    module = script("evaluate")
    module.evaluate(*module.parse([f"ckpt={run}"]))
    show, report = script("show"), script("report")
    show.run(["model", *TINY, "env=vmas/navigation"])
    report.report(*report.parse([str(run)]))
    output = capsys.readouterr().out
    tables = "\n".join(line for line in output.splitlines() if line[:1] in "┏┃┡│└")
    assert len(widest(tables)) <= 80 and "…" not in tables


def test_lines_of_progress_stay_whole_in_a_file(monkeypatch) -> None:
    record = {"frames_per_second": 1e6, "episode_return": 1.0, "eval/episode_return": 2.0, "loss": 0.5}
    line = f"iteration 2000/2000  600,000 frames  {describe(record, 'frames', 'episode_return')}  ETA 0 s"
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal.fit(line) == line and len(line) > 80
    monkeypatch.setenv("COLUMNS", "80")
    assert len(widest(terminal.fit(line))) <= 80 and terminal.fit(line).split() == line.split()
