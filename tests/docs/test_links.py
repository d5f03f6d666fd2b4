"""The links of README and the pages: every file, picture, script and test that they name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
ANCHOR = re.compile(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)")
NAMED = re.compile(r"\b((?:agents|conf|docs|envs|marl|scripts|tests)/[\w/]+\.(?:cpp|cu|h|js|md|png|py|yaml))\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    text = page.read_text()
    broken = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    # extending.md speaks of the example's files by their paths in it.
    named = NAMED.findall(re.sub(r"https?://\S+", "", text))
    broken += [name for name in named if not any((top / name).exists() for top in (ROOT, EXAMPLES))]
    assert not broken


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: small letters, no punctuation, hyphens for spaces."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_headings_that_a_page_links_to_are_there(page: Path) -> None:
    links = [(page.parent / link if link else page, anchor) for link, anchor in ANCHOR.findall(page.read_text())]
    broken = [f"{target.name}#{anchor}" for target, anchor in links if anchor not in anchors(target)]
    assert not broken


def test_every_picture_is_shown() -> None:
    shown = {Path(link).name for page in PAGES for link in LINK.findall(page.read_text())}
    assert {path.name for path in (ROOT / "docs" / "pictures").iterdir()} <= shown
