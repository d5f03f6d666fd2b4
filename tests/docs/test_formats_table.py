"""docs/scripts/formats.py on a small scale: its tables have a cell for every format, and raw VMAS agrees with ours."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BALANCE = str(ROOT / "docs" / "zoo" / "balance.safetensors")
TAG = str(ROOT / "docs" / "zoo" / "simple_tag.safetensors")


@pytest.fixture
def formats(monkeypatch):
    spec = importlib.util.spec_from_file_location("formats", ROOT / "docs" / "scripts" / "formats.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CALIBRATION", 1)
    return module


def test_returns_in_raw_vmas_are_those_of_our_evaluation(formats, monkeypatch, capsys) -> None:
    monkeypatch.setattr(formats, "EPISODES", 60)
    formats.main(["returns", BALANCE, TAG, "kinds=torchscript"])
    header, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert header.endswith("`torchscript` |")
    assert [row.split("|")[1].strip().removeprefix(TAG) for row in rows] == [BALANCE, ", adversary", ", agent"]
    for row in rows:
        low, high, mean = re.search(r"\((\S+) to (\S+)\) \| (\S+) \|", row).groups()  # bold where it is outside
        assert float(low) <= float(mean) <= float(high)


def test_errors_and_latencies_have_their_cells(formats, monkeypatch, capsys) -> None:
    monkeypatch.setattr(formats, "OBSERVATIONS", 100)
    monkeypatch.setattr(formats, "CALLS", 10)
    monkeypatch.setattr(formats, "ROUNDS", 2)
    monkeypatch.setattr(formats.os, "sched_setaffinity", lambda pid, cpus: None)  # the tests keep their cores
    formats.main(["errors", BALANCE, "kinds=compiled,torch"])
    cells = capsys.readouterr().out.strip().splitlines()[-1].split("|")
    assert cells[2].strip() == "0.0e+00 (0.0e+00)" and 0 < float(cells[3].split()[0]) < 1e-5
    formats.main(["latency", BALANCE, "kinds=compiled,torch"])
    rows = capsys.readouterr().out.strip().splitlines()[2:4]
    assert [row.split("|")[1].strip() for row in rows] == ["`compiled`", "`torch`"]
    assert all(row.split("|")[6].strip() == "20" for row in rows)


def test_what_is_no_command_shows_the_help(formats) -> None:
    for arguments in ([], ["errors"], ["speed", BALANCE], ["errors", BALANCE, "kinds=onx"]):
        with pytest.raises(SystemExit, match="Makes the tables of docs/export.md"):
            formats.main(arguments)


def test_a_run_that_is_not_there_is_one_sentence(formats, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        formats.main(["errors", "nothing", "kinds=torch"])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: no checkpoint at nothing:")
