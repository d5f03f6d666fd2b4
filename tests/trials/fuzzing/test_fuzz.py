"""A short fuzz of the scripts, and that it sees what it looks for; `python tests/trials/fuzz.py` is the long one."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trials import fuzz
from tests.trials.fuzzing import commands, damage, overrides
from tests.trials.fuzzing.outcome import Outcome

SHORT = ["--overrides", "20", "--commands", "1", "--files", "2", "--parts", "run", "sweep"]


def test_bad_input_is_rejected_in_a_sentence(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, fuzz.__file__, *SHORT, "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(figures.read_text())
    assert report["faults"] == [] and report["figures"]["overrides"]["commands"] == 20
    assert report["figures"]["commands"]["commands"] == 1 and report["figures"]["files"]["commands"] >= 2


TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 3, in f\nKeyError: 1\n'
GOOD = [(0, "", ""), (0, "", "warning: x\n"), (2, "", "error: seed=x: must be a number\n"), (3, "",
"error: diverged\n"),
        (2, "", "warning: x\nerror: y\n"), (2, "", "usage: train.py\ntrain.py: error: unrecognized\n")]  # fmt: skip
BAD = [
    (1, "", "error: x\n", "exit code 1"),
    (-11, "", "", "signal 11"),
    (None, "", "", "no answer"),
    (1, "", TRACEBACK, "KeyError: 1 (a.py:3 in f)"),
    (0, "", TRACEBACK, "traceback"),
    (2, TRACEBACK, "error: x\n", "traceback"),
    (2, "", "", "without one sentence"),
    (2, "", "error: x\nerror: y\n", "without one sentence"),
    (2, "", "error: x\nand more\n", "without one sentence"),
]


@pytest.mark.parametrize(("code", "out", "err"), GOOD)
def test_good_ends_are_good(code, out, err) -> None:
    assert Outcome(["python"], code, out, err).fault() is None


@pytest.mark.parametrize(("code", "out", "err", "words"), BAD)
def test_bad_ends_are_seen(code, out, err, words) -> None:
    assert words in Outcome(["python"], code, out, err).fault()


def test_a_trial_that_kills_the_fuzz_is_a_fault_and_the_others_go_on(tmp_path: Path, capfd) -> None:
    class Dies(fuzz.Fuzz):
        def __init__(self) -> None:
            self.folder = tmp_path

        def trial(self, kind, index):
            if index == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            yield Outcome(["python"], 0, "", "")

    rows = sorted(Dies().run("overrides", 8, 1), key=lambda row: row["index"])
    assert [row["index"] for row in rows] == list(range(8))
    assert [row["fault"] for row in rows] == [None] * 3 + ["signal 9"] + [None] * 4


def test_trials_depend_on_seed_and_number_alone() -> None:
    for i in range(20):
        assert len({str(overrides.generate(random.Random(f"0:{i}"), "run")) for _ in range(2)}) == 1
    assert len({str(overrides.generate(random.Random(f"0:{i}"), "run")) for i in range(20)}) > 15


def test_every_script_has_a_good_command() -> None:
    assert commands.examples() == []


@pytest.mark.parametrize("number", range(len(damage.DAMAGES)))
def test_every_damage_damages(number: int, tmp_path: Path) -> None:
    path, changed = tmp_path / "file", 0
    for seed in range(8):
        path.write_bytes(b"name: x\nseed: 10\nlist: [1, 2, 0.5]\nflag: true\n" * 3)
        before = path.read_bytes(), path.stat().st_mode
        damage.DAMAGES[number](path, random.Random(seed))
        changed += not path.is_file() or (path.read_bytes(), path.stat().st_mode) != before
        if path.is_dir():
            damage.mend(path)
            for inner in path.iterdir():
                inner.unlink()
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    assert changed >= 4
