"""The tables of docs/toolkit.md: no item without a test, and every test that is named exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
TABLES = re.findall(r"^\| item \|.*\n\|[-|]+\n((?:\|.*\n)+)", (ROOT / "docs" / "toolkit.md").read_text(), re.M)
ROWS = [line for table in TABLES for line in table.splitlines()]


def test_there_are_tables():
    assert len(TABLES) >= 4 and len(ROWS) >= 60


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_item_names_tests_that_exist(row):
    item, switch, tests, agents = (cell.strip() for cell in row.strip("|").split(" | "))
    assert item and switch and agents
    if "the same" in tests:
        return
    names = re.findall(r"\btest_\w+", f"{tests} {agents}")
    assert re.search(r"\btest_\w+", tests), "no test"
    for name in names:
        assert name in SOURCES or any(f"def {name}(" in source for source in SOURCES.values()), name
