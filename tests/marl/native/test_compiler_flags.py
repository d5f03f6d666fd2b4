"""Flags for compilers that lack some of them: what is left is still used."""

import platform
import shutil
from pathlib import Path

import pytest

from marl.native import compiler
from marl.native.compiler import compile_library, load

SOURCE = '#include "simd.h"\nstatic_assert(__cplusplus == 201703L, "");\nextern "C" int width() { return W; }\n'
PARTIAL = """#!/bin/sh
for word in "$@"; do case "$word" in -fopenmp) exit 1;; esac; done
echo "$@" >> {log}
exec {gxx} -std=gnu++98 "$@"
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_a_compiler_without_openmp_still_makes_code_for_this_machine(tmp_path: Path, monkeypatch) -> None:
    """As Apple's clang where its OpenMP is not installed; C++98 is what it takes where nothing is said."""
    log, script = tmp_path / "log", tmp_path / "partial-g++"
    script.write_text(PARTIAL.format(log=log, gxx=shutil.which("g++")))
    script.chmod(0o700)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("MARL_KERNEL_CACHE", str(tmp_path / "cache"))
    assert load(compile_library(SOURCE)).width() >= 4
    last = log.read_text().splitlines()[-1]
    assert ("-mcpu=native" if platform.machine() == "aarch64" else "-march=native") in last and "USE_SLEEF" in last


def test_arm_and_apple_get_their_own_flags(tmp_path: Path, monkeypatch) -> None:
    """-march=native is unknown to older clangs on Arm; Apple's takes OpenMP through the preprocessor only."""
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    first, *_, last = compiler._variants(tmp_path, "g++")
    assert first[:3] == ["-mcpu=native", "-Xpreprocessor", "-fopenmp"] and last == []
    assert any(flag.startswith("-Wl,-rpath,") for flag in first)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert compiler._variants(tmp_path, "g++")[0][:2] == ["-march=native", "-fopenmp"]
