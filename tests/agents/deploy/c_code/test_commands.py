"""The commands and the C of docs/export.md: what they print, and a sentence where they can't."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agents.deploy.c_code import check, cortex_m
from agents.deploy.export import export
from agents.policies.policy import Policy
from tests.fixtures.runs import make_run

ROOT = Path(__file__).resolve().parents[4]
BALANCE = str(ROOT / "docs" / "zoo" / "balance.safetensors")
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")


@needs_gcc
def test_the_check_prints_a_line_for_each_compiler_that_is_installed(capsys) -> None:
    check.main([BALANCE, "--steps", "200", "--compiler", "gcc", "no-compiler", "--weights", "int8"])
    of_gcc, of_rounding = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"gcc: 800 actions, largest relative difference (\S+), 0 other choices", of_gcc)
    assert found and 0 < float(found[1]) <= 1e-6
    changed = re.match(r"agents: eight bits change a number by (\S+) of its range", of_rounding)
    assert changed and 0 < float(changed[1]) < 0.02


@pytest.mark.skipif(bool(cortex_m.why_not()), reason=cortex_m.why_not() or "all is there")
def test_the_board_prints_its_table(capsys) -> None:
    cortex_m.main([BALANCE, "--steps", "5", "--weights", "int8"])
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\| agents \|( [\d,]+ \|){6}", printed[2]) and printed[3].startswith("20 actions: largest")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "error: no checkpoint at nothing: expected a file"),
        ([BALANCE, "--compiler", "no-compiler"], "--compiler no-compiler: none is installed"),
        ([BALANCE, "--steps", "0"], "--steps 0: must be at least 1"),
    ],
)
def test_the_check_says_what_is_wrong(arguments: list[str], words: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(check.shutil, "which", lambda name: name if name == "gcc" else None)
    ends_with_a_sentence(check.main, arguments, words, capsys)


@pytest.mark.parametrize(
    ("missing", "arguments", "words"),
    [
        ("", ["nothing"], "error: no checkpoint at nothing: expected a file"),
        ("", [BALANCE, "--steps", "-1"], "--steps -1: must be at least 1"),
        ("qemu-system-arm is not installed", [BALANCE], "qemu-system-arm is not installed"),
    ],
)
def test_the_board_says_what_is_wrong(missing: str, arguments: list[str], words: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cortex_m, "why_not", lambda: missing)
    ends_with_a_sentence(cortex_m.main, arguments, words, capsys)


def ends_with_a_sentence(main, arguments: list[str], words: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == 2 and words in printed.err and not printed.out


@needs_gcc
def test_the_c_of_the_page_calls_a_policy_with_a_memory(tmp_path: Path) -> None:
    policy = Policy.load(make_run(tmp_path / "run", "env=vmas/balance", "network=gru", "network.hidden=8"))
    export(policy, "c", tmp_path)
    include, calls = re.findall(r"```c\n(#include.*?\n)(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)[0]
    (tmp_path / "main.c").write_text(
        f"#include <stdio.h>\n{include}int main(void) {{\nfloat observation[POLICY_AGENTS_FEATURES] = {{0}};\n{calls}"
        'printf("%.9g %.9g", action[0], action[1]);\nreturn 0;\n}\n'
    )
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "main.c", "policy.c", "-o", "main", "-lm"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    printed = subprocess.run([str(tmp_path / "main")], capture_output=True, text=True, check=True).stdout
    zeros = {"agents": policy.memory(1)["agents"].new_zeros(1, 4, 16)}
    expected = policy.act(zeros, memory=policy.memory(1))[0]["agents"][0, 0]
    assert [float(number) for number in printed.split()] == pytest.approx(expected.tolist(), abs=1e-6)
