"""Files and folders: short files that say what they are for, small folders, modules in packages."""

import ast
from collections import defaultdict
from pathlib import Path

from tests.fixtures.sources import FILES, INITS, PACKAGES, ROOT, name, package_of

LINES, LINES_OF_TESTS = 325, 330  # of a file; tests hold tables of cases too
LARGEST = 14  # files of a folder beside its sub-folders
TREES = (*PACKAGES, "conf", "docs", "tests")
MADE = {"__pycache__", "outputs", "multirun", "build"}  # by Python, by runs, by CMake where an example is built
SHELF = (
    ROOT / "docs" / "zoo"
)  # made by scripts/zoo.py and docs/scripts/gallery.py: two files for each policy, and pages
ENDINGS = {".py", ".yaml", ".h", ".cpp", ".cu", ".js"}


def folders() -> dict[Path, list[Path]]:
    """{folder: files in it}, without what is made when something runs."""
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for top in TREES:
        for path in sorted((ROOT / top).rglob("*")):
            made = MADE & set(path.relative_to(ROOT).parts) or path.is_relative_to(SHELF)
            if path.is_file() and not made and not path.name.startswith("."):
                by_folder[path.parent].append(path)
    return by_folder


FOLDERS = folders()
SOURCES = [path for files in FOLDERS.values() for path in files if path.suffix in ENDINGS]
MODULES = [path for path in SOURCES if path.suffix == ".py"]


def test_the_walk_sees_the_tree() -> None:
    """A walk that finds nothing passes everything."""
    assert set(FILES) < set(MODULES) and {package_of(path) for path in SOURCES} == set(TREES)
    assert {path.suffix for path in SOURCES} >= {".py", ".yaml", ".h", ".js"}


def test_files_are_short() -> None:
    most = {path: LINES_OF_TESTS if package_of(path) == "tests" else LINES for path in SOURCES}
    lines = {path: len(path.read_text().splitlines()) for path in SOURCES}
    long = [f"{name(path)} has {lines[path]} of {most[path]}" for path in SOURCES if lines[path] > most[path]]
    assert not long, f"lines: {', '.join(long)}"


def test_files_say_what_they_are_for() -> None:
    silent = []
    for path in MODULES:
        text = path.read_text()
        purpose = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
        if not text.startswith('"""') or len(purpose) < 20:
            silent.append(f"{name(path)} begins with {purpose!r}")
    assert not silent, ", ".join(silent)


def test_packages_say_in_one_line_what_lives_there() -> None:
    for path in INITS:
        first = path.read_text().partition("\n")[0]
        assert first.rstrip('"').endswith("."), f"{name(path)}: the first line, {first!r}, is no whole sentence"


def test_configurations_begin_with_their_purpose() -> None:
    for path in (ROOT / "conf").rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# "), path


def test_folders_are_small() -> None:
    public = {  # each file there is a choice of the command line, by its name: env=vmas/balance, experiment=digits
        "conf/algo",
        "conf/data",
        "conf/env/vmas",
        "conf/experiment",
        "conf/network",
        "conf/objective",
        "scripts",
    }
    large = {name(folder): len(files) for folder, files in FOLDERS.items() if len(files) > LARGEST}
    full = [f"{folder} holds {count}" for folder, count in large.items() if folder not in public]
    assert not full, f"more than {LARGEST} files need sub-folders: {', '.join(full)}"
    assert public <= large.keys(), "an exception that is none any more"


def test_folders_of_modules_are_packages() -> None:
    bare = [
        name(folder)
        for folder, files in FOLDERS.items()
        if package_of(folder) in ("agents", "envs", "marl")
        and any(path.suffix == ".py" for path in files)
        and folder / "__init__.py" not in files
    ]
    assert not bare, f"modules without an __init__.py beside them: {', '.join(bare)}"
