"""Pictures of a live page, a player and a report for the docs, taken in headless Chromium.

    python docs/scripts/screenshots.py docs/pictures live.html player.html report.html

Any of the three pages may be left out; a page's name says what is done in it before the picture is taken.
"""

import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.fixtures.browser import Browser

STEP, SOON = 40, 12  # of the episode that is shown: of a player; of a live page, before it ends without steering
READY = "const page = window.live || window.player; return !page || page.ready"
SIZES = {"live": (1280, 800), "player": (1280, 860), "report": (1280, 760)}  # CSS pixels


def take_over(browser: Browser) -> None:
    """An agent steered by the arrow keys, some steps into the episode."""
    for control in ("#agents button:nth-child(2)", "#take"):
        browser.run("document.querySelector(arguments[0]).click()", control)
    browser.wait("return live.engine.steps >= arguments[0]", SOON, seconds=60)
    browser.run("document.getElementById('play').click()")


def go(browser: Browser) -> None:
    """A moment in the middle of the episode."""
    browser.run("player.go(arguments[0])", STEP)


def main(folder: str, *pages: str) -> None:
    browser = Browser()
    try:
        for page in map(Path, pages):
            browser.size(*SIZES[page.stem])
            browser.open(page)
            browser.wait(READY, seconds=60)
            {"live": take_over, "player": go}.get(page.stem, lambda _: None)(browser)
            time.sleep(0.5)  # until it is drawn
            with tempfile.TemporaryDirectory() as temporary:
                with Image.open(browser.screenshot(Path(temporary) / "page.png")) as picture:
                    small = picture.convert("RGB").quantize(160, dither=Image.Dither.NONE)
                small.save(Path(folder) / f"{page.stem}.png", optimize=True)
    finally:
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
