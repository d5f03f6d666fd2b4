"""The first minutes: what a run says at its end can be typed, and the latest run's page opens."""

import os
import shlex
from pathlib import Path

import pytest

from marl.core import run_directory
from marl.core.errors import UserError
from tests.fixtures.runs import TINY, make_run

TRAIN = [*(o for o in TINY if o != "env.fast=off"), "env=vmas/balance"]


def next_commands(output: str) -> dict[str, list[str]]:
    """{script: arguments} of what stands after "next:"."""
    lines = output.partition("\nnext:\n")[2].splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    assert all(command[0] == "python" for command in words)
    return {Path(command[1]).stem: command[2:] for command in words}


def test_what_a_run_says_at_its_end_can_be_typed(shell, tmp_path):
    folder = tmp_path / "of a user"
    folder.mkdir()
    done = shell(folder, "train", *TRAIN)
    assert done.returncode == 0, done.stderr
    commands = next_commands(done.stdout)
    assert list(commands) == ["evaluate", "replay", "play"]
    for name, arguments in commands.items():
        more = ["episodes=2"] if name != "play" else ["seeds=1"]
        again = shell(folder, name, *arguments, *more)
        assert again.returncode == 0, again.stderr
    assert list(folder.glob("outputs/*/*/live.html")) and list(folder.glob("outputs/*/*/replay/replay.html"))


def test_a_models_run_names_what_works_on_models(shell, tmp_path):
    done = shell(tmp_path, "train", "experiment=digits", "epochs=1", "trainer.progress=off")
    assert done.returncode == 0, done.stderr
    assert list(next_commands(done.stdout)) == ["evaluate", "explain"]


def test_the_latest_runs_page_opens(script, tmp_path, monkeypatch):
    runs = [make_run(tmp_path / "outputs" / "balance" / name, "env.fast=auto") for name in ("b", "a")]
    for seconds, run in ((2_000_000_000, runs[0]), (1_000_000_000, runs[1])):
        os.utime(run / "checkpoints" / "last.pt", (seconds, seconds))
    assert run_directory.latest(tmp_path / "outputs") == runs[0]
    opened = []
    monkeypatch.chdir(tmp_path)
    module = script("play")
    monkeypatch.setattr(module.webbrowser, "open", lambda address: opened.append(address) or True)
    module.run(module.Options(seeds=1, open=True))
    assert opened == [(runs[0] / "live.html").as_uri()]


def test_without_a_run_there_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no run in .*outputs/ yet: python scripts/train.py"):
        run_directory.latest(tmp_path / "outputs")
