"""A page inside a notebook: its text, whole, in a frame."""

from html.parser import HTMLParser

import pytest

from agents import show_page
from marl import UserError

TEXT = '<!doctype html>\n\n<p title="a & b">"quoted" &lt;told&gt; \'é\'</p>\n<script>if (1 < 2 && "x") {}</script>'


def test_a_frame_holds_the_page(tmp_path):
    (tmp_path / "live.html").write_text(TEXT, encoding="utf-8")
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    frame = show_page(tmp_path / "live.html", height=320)
    parser.feed(frame._repr_html_())
    ((tag, attributes),) = tags
    assert tag == "iframe" and attributes["srcdoc"] == TEXT and "height: 320px" in attributes["style"]
    assert repr(frame) == f"{tmp_path / 'live.html'}: open it in a browser"


def test_a_page_that_is_not_there_is_told(tmp_path):
    with pytest.raises(UserError, match="live.html: no such file"):
        show_page(tmp_path / "live.html")
