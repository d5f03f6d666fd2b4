"""The tables of the guides `toolkit` and `data`: no item without a test, and every test that is named exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
PAGES = "\n".join((ROOT / "docs" / "guides" / name).read_text() for name in ("toolkit.md", "data.md"))
TABLES = re.findall(r"^\| item \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGES, re.M)
ROWS = [line for table in TABLES for line in table.splitlines()]


def test_there_are_tables():
    assert len(TABLES) >= 5 and len(ROWS) >= 80


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
