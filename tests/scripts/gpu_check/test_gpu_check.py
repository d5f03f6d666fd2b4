"""scripts/benchmark.py --check: faults and hangs become rows, exit codes, mistakes. On the stand-in it runs whole."""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parent.parent.parent.parent / "scripts"
sys.path.append(str(SCRIPTS))  # where `python scripts/benchmark.py` finds its parts

from bench import timing  # noqa: E402
from bench.gpu import command, figures, parts, runs, table, training  # noqa: E402
from bench.learning import ours_sized  # noqa: E402

from marl.config import compose  # noqa: E402

SLEEP = 60.0  # seconds; longer than any test waits
MARKED = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"


def rows(item: str, options: argparse.Namespace, clock: timing.Clock) -> Iterator[dict]:
    """Rows of items that go well, raise, end their process, or never end."""
    if item == "well":
        yield parts.verdict("well", "a check", True, "all is well")
    elif item == "figure":
        yield timing.figure("figure", "a figure", 2.5, "ms", more_of_it=3)
    elif item == "wrong":
        yield parts.verdict("wrong", "another check", False, "it differs")
    elif item == "raises":
        raise ValueError("no such\nkernel")
    elif item == "faults":
        os.kill(os.getpid(), signal.SIGKILL)
    elif item == "leaves":
        os._exit(3)
    elif item == "too large":
        raise torch.OutOfMemoryError("no room for 99 GB")
    elif item == "hangs":
        time.sleep(SLEEP)


def part(*items: str, name: str = "part", side_by_side: bool = False) -> parts.Part:
    return parts.Part(name, 10, lambda options: list(items), rows, side_by_side=side_by_side)


@pytest.mark.parametrize("side_by_side", [False, True])
def test_what_goes_wrong_is_a_row_and_the_rest_goes_on(side_by_side: bool) -> None:
    made = part("raises", "well", "too large", "faults", "leaves", "figure", side_by_side=side_by_side)
    found = {row["item"]: row for row in parts.run(made, argparse.Namespace(device="cpu"), 60)}
    assert found["well"]["outcome"] == "passed" and found["figure"]["value"] == 2.5
    assert {found[item]["outcome"] for item in ("raises", "faults", "leaves")} == {"failed"}
    assert found["too large"]["outcome"] == "left out" and "no room for 99 GB" in found["too large"]["said"]
    assert found["raises"]["said"] == "ValueError: no such kernel"
    assert found["faults"]["said"] == "its process was ended by SIGKILL"
    assert found["leaves"]["said"] == "its process ended with exit code 3"


def test_what_does_not_end_is_left_and_named_with_all_behind_it(monkeypatch) -> None:
    monkeypatch.setattr(parts, "GRACE", 0.2)
    began = time.perf_counter()
    found = list(parts.run(part("well", "hangs", "figure"), argparse.Namespace(device="cpu"), 2))
    assert [row["outcome"] for row in found] == ["passed", "left out"] and time.perf_counter() - began < SLEEP
    assert found[-1]["left"] == ["hangs", "figure"] and found[-1]["said"].endswith("hangs, figure")


def test_a_part_without_time_begins_nothing() -> None:
    (row,) = parts.run(part("raises", "well"), argparse.Namespace(device="cpu"), 0)
    assert row["outcome"] == "left out" and row["left"] == ["raises", "well"]


@pytest.fixture
def check(tmp_path: Path, monkeypatch):
    """`check(parts…)`: (exit code, the page it wrote, its JSON)."""
    page, figures_file = tmp_path / "page.md", tmp_path / "out" / "check.json"
    page.write_text(MARKED)
    monkeypatch.setattr(command, "no_device", lambda options: "")
    options = argparse.Namespace(device="cuda", only=[], skip=[], report=False, keep=False, minutes=1)
    options.write, options.json = page, figures_file

    def run(*chosen: parts.Part) -> tuple[int, str, dict]:
        code = command.run(options, "the command", chosen)
        return code, page.read_text(), json.loads(figures_file.read_text())

    return run


def test_a_check_that_fails_is_a_row_and_exit_code_1(check) -> None:
    code, page, results = check(part("well", "wrong", "figure"), part("raises", name="other"))
    assert code == 1 and page.startswith("before\n") and page.endswith("\nafter\n") and "old" not in page
    assert "| part | another check | **failed** |  |  |  | it differs |" in page
    assert "| part | a figure |  | 2.50 ms |  |  | more of it 3.00 |" in page
    assert "| other | raises | **failed** |  |  |  | ValueError: no such kernel |" in page
    assert "1 checks passed, 2 failed, 0 had nothing to check" in page
    assert [row["outcome"] for row in results["parts"]["other"]["rows"]] == ["failed"]


def test_checks_that_pass_are_exit_code_0(check) -> None:
    code, page, results = check(part("well"), part("figure", name="figures"))
    assert code == 0 and "1 checks passed, 0 failed" in page and results["machine"]["device"] == "cuda"


MISTAKES = {
    "the CPU": ([], "--check: needs --device cuda, not cpu; it checks what runs on a GPU"),
    "cases": (["--device", "cuda", "--only", "learn"], "--check: cannot go with --only; it has parts of its own"),
    "no time": (["--device", "cuda", "--minutes", "-1"], "--minutes -1: must be more than 0"),
    "no page": (["--device", "cuda", "--write", "nowhere.md"], "--write nowhere.md: there is no such file"),
    "no markers": (["--device", "cuda", "--write", "page.md"], "--write page.md: needs one line <!-- gpu check: begin"),
}
if not torch.cuda.is_available():
    MISTAKES["no GPU"] = (["--device", "cuda"], "--check: device=cuda: this machine has no GPU that torch can use\n")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence_and_exit_code_2(name: str, tmp_path: Path, monkeypatch, script, capsys) -> None:
    arguments, said = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    Path("page.md").write_text("no markers\n")
    with pytest.raises(SystemExit) as ended:
        script("benchmark").main(["--check", *arguments])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith(f"error: {said}") and told.count("\n") == 1
    assert not Path("outputs").exists()


def test_contents_of_checkpoints_are_compared_to_the_bit() -> None:
    one = {"a": torch.tensor([1.0, float("nan")]), "b": 3, "c": torch.tensor([True])}
    assert not runs.difference(one, {name: value for name, value in one.items()})
    other = one | {"a": torch.tensor([1.5, float("nan")])}
    assert runs.difference(one, other) == "1 of 3 parts differ, by 3e-01 at most (a)"  # 0.5 of 1.5
    assert runs.difference(one, one | {"b": 4}) == "1 of 3 parts differ, by inf at most (b)"
    assert runs.difference(one, {"a": one["a"]}) == "they hold other things: b, c"


def test_settings_of_a_whole_run_compose() -> None:
    """The stand-in runs tiny sizes only."""
    options = argparse.Namespace(quick=False, device="cpu")
    for item in training.captures(options):
        config = compose.check(compose.compose([*training.overrides(item, options), *runs.length(4)]))
        assert config["env"]["num_envs"] in (60, 600) and config["trainer"]["checkpoint_every"] == 4
    assert set(training.resumes(options)) <= set(training.captures(options)) and figures.items(options)[-1] == "100000"
    for count in map(int, figures.items(options)):
        steps, minibatch, epochs = figures.sizes(count, options)
        sizes = ours_sized("balance", count, steps, minibatch, "cpu", *runs.QUIET, f"algo.epochs={epochs}")
        assert compose.check(compose.compose(sizes))["algo"]["minibatch_size"] <= count * steps


def test_a_share_of_the_limit_is_the_longer_of_both_over_the_time() -> None:
    peaks = {"card/copy": 1000.0, "card/float32": 50.0}  # 1e12 B/s and 5e13 FLOP/s
    options = argparse.Namespace(peaks=peaks)
    assert figures.share(options, 0.01, 1e9, 1e10) == {"share_of_limit_%": pytest.approx(10)}  # 1 ms, 0.2 ms
    assert figures.share(options, 0.01, 1e9, 1e11) == {"share_of_limit_%": pytest.approx(20)}
    assert figures.share(options, 0.01, 0, 0) == {} == figures.share(argparse.Namespace(peaks={}), 1.0, 1.0, 1.0)


def test_the_performance_page_has_a_place_for_the_table() -> None:
    assert not table.check_page(SCRIPTS.parent / "docs" / "performance.md")
