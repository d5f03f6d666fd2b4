"""The links of README, the pages and the notebook: every file, heading, picture, script and test that they name."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "docs" / "quickstart.ipynb"]
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
ANCHOR = re.compile(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)")
NAMED = re.compile(r"\b((?:agents|conf|docs|envs|marl|scripts|tests)/[\w/]+\.(?:cpp|cu|h|js|md|png|py|yaml))\b")


def markdown(page: Path) -> str:
    """A page's text; of a notebook that of its cells which are no code."""
    if page.suffix != ".ipynb":
        return page.read_text()
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(page.read_text())["cells"]
                       if cell["cell_type"] == "markdown")  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    text = markdown(page)
    broken = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    # extending.md speaks of the example's files by their paths in it.
    named = NAMED.findall(re.sub(r"https?://\S+", "", text))
    broken += [name for name in named if not any((top / name).exists() for top in (ROOT, EXAMPLES))]
    assert not broken


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: small letters, no punctuation, hyphens for spaces."""
    text = re.sub(r"^```.*?^```", "", markdown(page), flags=re.S | re.M)
    headings = re.findall(r"^#+ +(.+?) *$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_headings_that_a_page_links_to_are_there(page: Path) -> None:
    links = [(page.parent / link if link else page, anchor) for link, anchor in ANCHOR.findall(markdown(page))]
    broken = [f"{target.name}#{anchor}" for target, anchor in links if anchor not in anchors(target)]
    assert not broken


def test_every_page_stands_in_the_table_of_the_readme() -> None:
    linked = {(ROOT / link).resolve() for link in LINK.findall((ROOT / "README.md").read_text())}
    assert [page.name for page in PAGES if page not in linked and page.name not in ("README.md", "SECURITY.md")] == []


def test_every_picture_is_shown() -> None:
    shown = {Path(link).name for page in PAGES for link in LINK.findall(markdown(page))}
    assert {path.name for path in (ROOT / "docs" / "pictures").iterdir()} <= shown
