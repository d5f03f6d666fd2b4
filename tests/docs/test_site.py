"""The docs site: built strictly, without an outside request, searchable from a disk, readable on a phone."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PHONE = 390  # CSS pixels
MADE = [
    Path(name)
    for name in ("index.md", "quickstart.md", "gallery.md", "examples.md", "changelog.md", "reference/losses.md")
]
PLAYS = "window.live && live.ready && live.frames > 3"  # of a live page

for needed in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / "docs" / "scripts" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. `strict: true` stands in mkdocs.yml: any warning is an exit code."""
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_of_the_docs_is_there(site):
    sources = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(sources) > 15
    missing = [path for path in [*sources, *MADE] if not (site / path.with_suffix(".html")).exists()]
    assert not missing


def test_the_reference_shows_names_with_their_docstrings(site):
    text = (site / "reference" / "python.html").read_text()
    names = "agents.building.tasks.make_task", "marl.engine.trainer.Trainer", "agents.policies.policy.Policy.act"
    for anchor in names:
        assert f'id="{anchor}"' in text
    assert "stop after this many iterations" in text


def pages(site: Path) -> list[Path]:
    """All pages but for 404.html, which only a server shows, and those of the zoo, which have tests of their own."""
    found = {path for path in site.rglob("*.html") if "zoo" not in path.relative_to(site).parts}
    return sorted(found - {site / "404.html"})


def test_pages_fit_a_phone_and_ask_for_nothing_from_elsewhere(site, browser):
    """Each page alone is loaded once, as wide as a phone; what is wide scrolls in itself."""
    browser.size(PHONE, 800)
    wrong = {}
    for path in pages(site):
        browser.open(path)
        browser.wait("return document.readyState == 'complete' && document.querySelector('h1') != null", seconds=60)
        found = []
        try:  # a script gives tables their frames
            browser.wait(f"return document.scrollingElement.scrollWidth <= {PHONE}", seconds=15)
        except AssertionError:
            found.append(f"{browser.run('return document.scrollingElement.scrollWidth')} pixels wide")
        found += browser.errors() + [url for url in browser.requests() if not url.startswith(site.as_uri())]
        if found:
            wrong[str(path.relative_to(site))] = found
    browser.size(1280, 900)
    assert len(pages(site)) > 30 and wrong == {}


def test_pages_are_shown_within_pages(site, browser):
    """The gallery moves, the chosen team plays in the frame below it, and the notebook's team in its own."""
    browser.size(PHONE, 800)
    browser.open(site / "gallery.html")
    within(browser, "iframe[name=gallery]", "return window.gallery && gallery.ready && gallery.loops.length > 5")
    links = "return [...document.querySelectorAll('a[target=live]')].map((link) => link.textContent)"
    assert browser.run(links) == sorted(path.stem for path in (ROOT / "docs" / "zoo" / "live").glob("*.html"))
    browser.run("document.querySelector('a[target=live][href*=wheel]').click()")
    within(browser, "iframe[name=live]", "return document.title.includes('wheel') && " + PLAYS)
    assert browser.errors() == []
    browser.open(site / "quickstart.html")
    within(browser, "iframe[srcdoc]", "return document.title.includes('balance') && " + PLAYS)
    assert browser.errors() == []
    browser.size(1280, 900)


def within(browser, frame: str, script: str) -> None:
    """Wait in a frame of the page until `script` returns something true."""
    browser.run("arguments[0].scrollIntoView()", browser.element(frame))
    browser.driver.switch_to.frame(browser.element(frame))
    browser.wait(script, seconds=60)
    browser.driver.switch_to.default_content()


def test_wide_tables_scroll_in_themselves(site, browser):
    browser.size(PHONE, 800)
    browser.open(site / "scenarios.html")
    table = "document.querySelector('.md-typeset__scrollwrap')"
    browser.wait(f"return {table} != null")
    inner, outer, way = browser.run(f"const t = {table}; return [t.scrollWidth, t.clientWidth, "
                                    "getComputedStyle(t).overflowX]")  # fmt: skip
    browser.size(1280, 900)
    assert inner > outer and way == "auto"


def test_search_works_from_a_disk(site, browser):
    browser.size(1280, 900)
    browser.open(site / "index.html")
    browser.wait("return document.readyState == 'complete'")
    browser.run("document.querySelector('.md-search__input').focus()")
    browser.keys("bootstrap")
    browser.wait("return document.querySelectorAll('.md-search-result__item').length > 2", seconds=30)
    assert browser.errors() == []
    assert [url for url in browser.requests() if not url.startswith(site.as_uri())] == []


def test_links_lead_to_the_pages_of_the_site(hook):
    readme = "[a](docs/guides/teams.md#groups) [b](docs/examples) ![c](docs/pictures/live.png) [d](https://x.y) [e](#f)"
    assert hook.linked(readme, "README.md") == (
        "[a](guides/teams.md#groups) [b](examples.md) ![c](pictures/live.png) [d](https://x.y) [e](#f)"
    )
    guide = "[a](../../README.md#from-python) [b](../examples/my_project/loss.py) [c](data.md) [d](../../CHANGELOG.md)"
    assert hook.linked(guide, "docs/guides/extending.md") == (
        "[a](../index.md#from-python) [b](../examples.md#my_projectlosspy) [c](data.md) [d](../changelog.md)"
    )


def test_a_public_name_without_a_docstring_is_told(hook, tmp_path):
    import griffe

    (tmp_path / "sample.py").write_text(
        '"""A module."""\nimport os\n\n'
        'class A:\n    """A class."""\n    def told(self):\n        """Said."""\n    def silent(self): ...\n'
        "    def _own(self): ...\n    def forward(self, x): ...\n    @property\n    def size(self): ...\n\n"
        'class B(A):\n    """Another."""\n    def told(self): ...\n\n'
        "def bare(): ...\n"
    )
    loaded = griffe.GriffeLoader(search_paths=[str(tmp_path)]).load("sample")
    assert list(hook.undocumented(loaded)) == ["sample.A.silent", "sample.A.size", "sample.bare"]
