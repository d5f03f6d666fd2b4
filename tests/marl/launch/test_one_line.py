"""Whatever a command line holds, its mistake is one line of printable text and exit code 2."""

import sys

import pytest

from marl.config import compose
from marl.core.errors import LONGEST, UserError, one_line
from marl.launch import cli, run

ODD = [
    ["hydra/launcher=[[]]"],
    ["~data=1"],
    ["--experimental-rerun", "network=mlp"],
    ["hydra/sweeper=5"],
    ["hydra.verbose={}"],
    ["algo.clip=" + "9" * 5000],  # more digits than Python reads
    ["ckpt=" + "9" * 5000],
    ["resume=a\nb"],
    ["resume=\x1b[31mred"],
    ["name=" + "x" * 100_000, "seed=x"],
]


@pytest.mark.parametrize("arguments", ODD, ids=lambda arguments: arguments[0][:30])
def test_what_hydra_stumbles_over_is_one_line(arguments, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        run.run(lambda cfg, run_dir: compose.check(cfg))
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    assert len(message) < LONGEST + 100 and message.rstrip("\n").isprintable()


def test_a_fault_of_the_job_is_no_mistake_of_the_command_line(monkeypatch, tmp_path) -> None:
    def job(cfg, run_dir):
        raise TypeError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(TypeError, match="a bug"):
        run.run(job)


def test_long_messages_keep_their_beginning_and_their_end(capsys) -> None:
    with pytest.raises(SystemExit), cli.guard():
        raise UserError("begins " + "x" * 10_000 + " ends")
    message = capsys.readouterr().err
    assert "begins" in message and message.endswith(" ends\n") and len(message) < LONGEST + 100
    assert one_line("a\nb\tc\x1b[0m ü 日本") == r"a\nb\tc\x1b[0m ü 日本"
