"""What type checkers see: stubs say what `from marl import …` gives, and README's lines are among what is checked."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
USER = ROOT / "tests" / "typed" / "from_python.py"


def in_stub(package: str) -> dict[str, str]:
    """{name: the module that a package's stub imports it from}."""
    nodes = ast.parse((ROOT / package / "__init__.pyi").read_text()).body[1:]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(nodes)
    assert all(alias.asname == alias.name for node in imports for alias in node.names)  # else they count as private
    return {alias.name: str(node.module) for node in imports for alias in node.names}


@pytest.mark.parametrize("package", ["marl", "agents", "envs"])
def test_stubs_have_the_names_that_packages_give(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "on_demand"]
    module = importlib.import_module(package)
    given = {*ast.literal_eval(calls[0].args[1]), *getattr(module, "__all__", ())}
    names = in_stub(package)
    assert set(names) == given and len(names) >= 8
    for name, home in names.items():
        assert getattr(importlib.import_module(home), name) is getattr(module, name), name
    assert (ROOT / package / "py.typed").exists()


def test_the_lines_of_the_readme_are_type_checked() -> None:
    """As they stand; `make lint` checks the file, strictly."""
    lines = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)[0]
    imports, calls = lines.strip().split("\n\n")[-2:]
    user = USER.read_text()
    assert "\n# pyright: strict\n" in user
    assert calls in user
    for line in filter(lambda line: line.startswith("from "), imports.splitlines()):
        source, names = re.fullmatch(r"from (\w+) import (.*)", line).groups()
        imported = re.search(rf"^from {source} import (.*)$", user, re.M)[1].split(", ")
        assert set(names.split(", ")) <= set(imported), line


def test_what_is_type_checked_is_there() -> None:
    """pyright passes over a path that does not exist."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    assert all(list(ROOT.glob(pattern)) for pattern in settings["include"])
    files = [path for path in settings["exclude"] if not path.startswith("**/")]
    assert all((ROOT / path).is_file() for path in files)  # so that new ones are checked
    assert str(USER.parent.relative_to(ROOT)) in settings["include"]
    off = {key for key, value in settings.items() if key.startswith("report") and value in (False, "none")}
    assert off == {"reportPrivateImportUsage"}  # each rule that is off says why
