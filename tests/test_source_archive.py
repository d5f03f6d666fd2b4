"""A source archive holds what the repository holds and nothing that work in it leaves; a wheel, all of the packages."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ADDED = {"PKG-INFO", "setup.cfg", "marl_engine.egg-info/SOURCES.txt"}  # by setuptools
PACKAGES = ("agents", "envs", "marl")
LEFT_IN = ("", "docs", "docs/examples", "envs/rendering/web", "marl", "tests")  # folders in which someone works


def tracked() -> set[str]:
    """Paths that git keeps, from the root, without those that were removed since."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {path for path in listing.split("\0") if path and (ROOT / path).is_file()}


def ignored() -> list[str]:
    """A file for each line of .gitignore in each of those folders, with an ending that packages take along."""
    lines = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line and not line.startswith("#")]
    names = [line.replace("*", "any") + "left.js" * line.endswith("/") for line in lines]
    return [str(Path(folder) / name) for folder in LEFT_IN for name in names]


def build(what: str, source: Path, out: Path) -> Path:
    """The archive of `build_sdist` or `build_wheel`, made as pip makes it, but with the setuptools that is here."""
    code = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    command = [sys.executable, "-c", code, what, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """That of a copy of the repository in which runs, tests and editors have left their files."""
    if not (ROOT / ".git").exists():
        pytest.skip("no repository: these tests run from a source archive")
    folder = tmp_path_factory.mktemp("archive")
    for path in tracked():
        target = folder / "source" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target)
    for path in ignored():
        target = folder / "source" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("left by something\n")
    return build("build_sdist", folder / "source", folder)


def test_it_holds_the_repository_and_nothing_else(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        paths = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    expected = tracked()
    assert len(expected) > 1000 and len(ignored()) > 50
    assert sorted(expected - paths) == [] and sorted(paths - expected - ADDED) == []


def test_what_is_installed_from_it_has_every_file_of_the_packages(archive: Path, tmp_path: Path) -> None:
    """Native sources, pages, style sheets, stubs and `py.typed` among them."""
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    wheel = build("build_wheel", tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path)
    paths = {path for path in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in path}
    expected = {path for path in tracked() if path.startswith(tuple(f"{package}/" for package in PACKAGES))}
    endings = {Path(path).suffix for path in expected}
    assert endings >= {".py", ".pyi", ".typed", ".cpp", ".h", ".c", ".ld", ".js", ".css"}
    assert sorted(expected - paths) == [] and sorted(paths - expected) == []
