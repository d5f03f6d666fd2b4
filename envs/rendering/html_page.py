"""Self-contained HTML pages: the files of envs/rendering/web joined with their data, so that a page needs no server."""

import base64
import gzip
import json
import os
from pathlib import Path
from typing import Any

from marl.core.look import tokens

WEB = Path(__file__).with_name("web")
SHARED = ("theme.js", "labels.js", "draw.js", "panels.js")  # what all pages draw with


def page(template: str, data: Any, **parts: str) -> str:
    """`template`.html with the style of all pages, what they draw with, and `template`.js in it.

    data: JSON-able, gzipped into the page. parts: further {PLACE: JavaScript}, put at /*PLACE*/.
    """
    packed = base64.b64encode(gzip.compress(json.dumps(data, separators=(",", ":")).encode(), 9, mtime=0)).decode()
    text = (WEB / f"{template}.html").read_text()
    shared = "\n".join(map(web, SHARED))
    filled = {"STYLE": tokens.style(), "DRAW": shared, "MAIN": web(f"{template}.js"), "DATA": packed, **parts}
    for place, content in filled.items():
        text = text.replace(f"/*{place}*/", content)
    return text


def web(name: str) -> str:
    """A file of envs/rendering/web, to be a part of a page."""
    return (WEB / name).read_text()


def write(path: str | Path, text: str) -> None:
    """Write a page whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
