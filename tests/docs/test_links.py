"""The links of README and the pages: every file, picture, script and test that they name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
NAMED = re.compile(r"\b((?:agents|conf|docs|envs|marl|scripts|tests)/[\w/]+\.(?:cpp|cu|h|js|md|png|py|yaml))\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    text = page.read_text()
    broken = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    # extending.md speaks of the example's files by their paths in it.
    broken += [name for name in NAMED.findall(text) if not any((top / name).exists() for top in (ROOT, EXAMPLES))]
    assert not broken


def test_every_picture_is_shown() -> None:
    shown = {Path(link).name for page in PAGES for link in LINK.findall(page.read_text())}
    assert {path.name for path in (ROOT / "docs" / "pictures").iterdir()} <= shown
