"""Compiled libraries: built once, in the background where that is asked for, and never used where they are wrong."""

import ctypes
from pathlib import Path

import pytest

from marl.native import library as native
from marl.native.library import NUMBER, Library

SOURCE = """#include <cstdint>
extern "C" int64_t width() { return 1; }
extern "C" int64_t twice(int64_t x) { return 2 * x; }
"""


def right(lib: ctypes.CDLL) -> None:
    if lib.twice(4) != 8:
        raise RuntimeError("twice four is not eight")


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / "twice.cpp").write_text(SOURCE)
    return Library([tmp_path / "twice.cpp"], ("-shared", "-fPIC"), {"twice": ([NUMBER], NUMBER)}, right, "by hand")


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """Sources that were built."""
    sources, build = [], native.compile_library

    def counting(source, flags):
        sources.append(source)
        return build(source, flags)

    monkeypatch.setattr(native, "compile_library", counting)
    return sources


@pytest.mark.parametrize("ahead", [False, True])
def test_a_library_is_built_once(library, built, ahead):
    if ahead:
        library.begin()
        library.begin()
    assert library().twice(21) == 42 and library().twice(2) == 4
    library.begin()
    assert built == [SOURCE]


@pytest.mark.parametrize("ahead", [False, True])
def test_what_cannot_be_built_is_reported_when_it_is_asked_for(library, monkeypatch, ahead):
    def failing(source, flags):
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr(native, "compile_library", failing)
    if ahead:
        library.begin()
    with pytest.warns(UserWarning, match="by hand: no C.. compiler was found"):
        assert library() is None
    assert library() is None  # told once


def test_what_is_wrong_is_not_used(library):
    library.sources[0].write_text(SOURCE.replace("2 * x", "3 * x"))
    with pytest.warns(UserWarning, match="by hand: twice four is not eight"):
        assert library() is None


def test_another_compiler_builds_again(library, built, monkeypatch):
    counting = native.compile_library
    library.begin()
    monkeypatch.setattr(native, "compile_library", lambda source, flags: counting(source, (*flags, "-O1")))
    assert library().twice(3) == 6 and 1 <= len(built) <= 2
    monkeypatch.setattr(native, "enabled", False)
    library.begin()
    assert library() is None
