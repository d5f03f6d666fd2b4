"""tests/fixtures/browser.py itself: what it reports of a page is what happened there."""

import pytest
from PIL import Image

PAGE = """<!doctype html><title>page</title><link rel="icon" href="data:,">
<body style="margin:0;background:#0a0"><canvas id=c width=100 height=50></canvas><button onclick="n++">b</button>
<script>let n = 0; const seen = [];
c.onpointerdown = c.onpointerup = e => seen.push([e.type, Math.round(e.offsetX), Math.round(e.offsetY)]);
onkeydown = e => seen.push(e.key)</script>"""


def test_it_drives_a_page_and_reports_no_trouble(browser, tmp_path) -> None:
    page = tmp_path / "page with a space.html"
    page.write_text(PAGE)
    browser.open(page)
    assert browser.run("return document.title + arguments[0]", 1) == "page1"
    browser.click("button")
    assert browser.wait("return n") == 1
    browser.drag("#c", (10, 10), (60, 30))
    browser.keys("w")
    assert browser.wait("return seen.length == 3 && seen") == [["pointerdown", 10, 10], ["pointerup", 60, 30], "w"]
    assert browser.errors() == [] and browser.requests() == []
    browser.size(300, 200)
    with Image.open(browser.screenshot(tmp_path / "p.png")) as picture:
        assert picture.size == (300, 200) and picture.convert("RGB").getpixel((290, 190)) == (0, 170, 0)


def test_it_reports_errors_and_requests_of_this_page_only(browser, tmp_path) -> None:
    bad, good = tmp_path / "bad.html", tmp_path / "good.html"
    bad.write_text(PAGE + "<script src=missing.js></script><script>setTimeout(() => nothing.at.all)</script>")
    good.write_text(PAGE)
    browser.open(bad)
    browser.wait("return document.readyState == 'complete'")
    assert any("nothing is not defined" in error for error in browser.errors())
    assert browser.requests() == [(tmp_path / "missing.js").as_uri()]
    with pytest.raises(AssertionError, match="not within"):
        browser.wait("return false", seconds=0.1)
    browser.open(good)
    assert browser.errors() == [] and browser.requests() == []
