"""The structure: who may import whom, how long files may be, and that each says what it is for."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"marl", "envs", "agents", "scripts"}
LIBRARIES = {"agents", "marl", "envs"}
MAY_IMPORT = {"marl": {"marl"}, "envs": {"envs", "marl"}, "agents": LIBRARIES, "scripts": LIBRARIES}
# What envs may know of marl: errors, seeds, files, devices, native code, and how names are looked up and checked.
CORE = {"core", "native"}
HYDRA = {"hydra", "omegaconf"}
KNOW = ("config/compose.py", "config/overrides.py", "config/hydra_errors.py", "launch/run.py", "launch/multirun.py")
KNOW += ("launch/new_run_directory.py", "config/saved_config.py")
KNOW_HYDRA = {ROOT / "marl" / name for name in KNOW}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
ENDINGS = {".yaml", ".h", ".cpp", ".cu", ".js"}
OTHER = sorted(p for d in (*PACKAGES, "conf") for p in (ROOT / d).rglob("*") if p.suffix in ENDINGS)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it; a relative import counts as its own package."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            packages.add(node.module.split(".")[0] if node.level == 0 else path.relative_to(ROOT).parts[0])
    return packages


def test_the_walk_sees_the_packages() -> None:
    packages = {path.relative_to(ROOT).parts[0] for path in SOURCES}
    assert packages == PACKAGES
    assert "torch" in imported(ROOT / "marl" / "engine" / "trainer.py")


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_arrows_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    wrong = imported(path) & PACKAGES - MAY_IMPORT[package]
    assert not wrong, f"{package} may not import {wrong}"
    if package != "scripts" and path not in KNOW_HYDRA:
        assert not imported(path) & HYDRA, f"Hydra belongs in scripts/ and {KNOW_HYDRA}"


@pytest.mark.parametrize("path", sorted((ROOT / "envs").rglob("*.py")), ids=name)
def test_environments_know_the_core_of_the_engine_only(path: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in nodes:
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            used = {each.split(".")[1] if "." in each else each for each in names if each.split(".")[0] == "marl"}
        elif node.level == 0 and node.module.split(".")[0] == "marl":
            used = {node.module.split(".")[1]} if "." in node.module else set(names)
        else:
            used = set()
        assert used <= CORE


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name)
def test_files_say_what_they_are_for(path: Path) -> None:
    text = path.read_text()
    purpose = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    assert text.startswith('"""') and len(purpose) >= 20, f"begins with {purpose!r}"


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, *OTHER], ids=name)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_configurations_begin_with_their_purpose() -> None:
    for path in (ROOT / "conf").rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# "), path
