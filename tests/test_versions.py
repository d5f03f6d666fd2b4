"""The versions that were tested together: one list, which pip and uv read in files of their own."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PYPROJECT)
PINNED = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def test_uv_takes_the_versions_that_pip_takes():
    assert len(PINNED) > 100
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == PINNED


def test_uvs_list_ends_the_file_where_make_writes_it_anew():
    head, begin, tail = PYPROJECT.partition("\nconstraint-dependencies = [\n")
    assert begin and tail == "".join(f'    "{pin}",\n' for pin in PINNED) + "]\n"
    recipe = (ROOT / "Makefile").read_text()
    assert "sed '/^constraint-dependencies/q' pyproject.toml" in recipe and "^constraint-dependencies" not in head


def test_what_the_tests_need_has_a_version_that_is_allowed():
    """Each requirement of the project and of the extra `dev`, those of the extras within it among them."""
    versions = {canonicalize_name(pin.name): pin for pin in map(Requirement, PINNED)}
    extras, asked = PROJECT["project"]["optional-dependencies"], []
    waiting = [*map(Requirement, PROJECT["project"]["dependencies"]), *map(Requirement, extras["dev"])]
    for each in waiting:
        if each.name == PROJECT["project"]["name"]:
            waiting += [Requirement(line) for extra in sorted(each.extras) for line in extras[extra]]
        else:
            asked.append(each)
    wrong = []
    for each in asked:
        pin = versions.get(canonicalize_name(each.name))
        version = next(iter(pin.specifier)).version if pin else None
        if version is None or version not in each.specifier:
            wrong.append(f"{each}: {version}")
    assert len(asked) > 35 and wrong == []
