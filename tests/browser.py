"""A headless Chromium for tests: opens pages, runs JavaScript, collects console errors and requests, takes pictures.

    def test_the_page_plays(browser, tmp_path):                  # the fixture; skips where there is no Chromium
        browser.open(tmp_path / "page.html")                     # a file, or any address as text
        assert browser.run("return document.title") == "replay"  # JavaScript; positional arguments: arguments[0], …
        browser.wait("return window.frame > 10", seconds=5)      # until it is true; AssertionError if it never is
        browser.click("#play"); browser.drag("canvas", (40, 30), (90, 30)); browser.keys("w")
        assert browser.errors() == []                            # console errors and uncaught exceptions since `open`
        assert browser.requests() == []                          # addresses other than the page's own, data: and blob:
        browser.screenshot(tmp_path / "page.png")                # PNG of the viewport (size: `browser.size(w, h)`)

One browser serves a test session (per pytest worker), each `open` starts from a clean log. It has a profile of its own,
which is removed at the end, and `browser.driver` is Selenium's, for everything else. Debian: `apt-get install chromium
chromium-driver`; MARL_CHROMIUM and MARL_CHROMEDRIVER name other binaries.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = {"MARL_CHROMIUM": ("chromium", "chromium-browser", "google-chrome"), "MARL_CHROMEDRIVER": ("chromedriver",)}
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # containers have a small /dev/shm
    "--window-size=1280,900",
)


def binaries() -> list[str | None]:
    """Paths of Chromium and of its driver; None for what is not installed."""
    found = []
    for variable, names in NAMES.items():
        given = os.environ.get(variable)
        found.append(given or next((path for path in map(shutil.which, names) if path), None))
    return found


class Browser:
    """A running Chromium; see the top of this file for what it can do."""

    def __init__(self) -> None:
        from selenium.webdriver import Chrome, ChromeOptions, ChromeService

        chromium, chromedriver = binaries()
        self.profile = tempfile.mkdtemp(prefix="chromium-")
        options = ChromeOptions()
        options.binary_location = chromium
        for switch in (*SWITCHES, f"--user-data-dir={self.profile}"):
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        os.environ.setdefault("SE_OFFLINE", "true")  # Selenium would look for newer drivers on the network
        self.driver = Chrome(options, ChromeService(chromedriver))
        self.driver.set_page_load_timeout(60)
        self.driver.set_script_timeout(60)

    def open(self, page: str | Path) -> None:
        """Load a file or an address, and forget what was logged before."""
        self.driver.get("about:blank")
        self.console: list[dict] = []
        self.traffic: list[str] = []
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.address = page if isinstance(page, str) and "://" in page else Path(page).resolve().as_uri()
        self.driver.get(self.address)

    def run(self, script: str, *arguments: Any) -> Any:
        """Execute JavaScript in the page; `return …` hands plain values and elements back."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: Any, seconds: float = 10) -> Any:
        """Run `script` until what it returns is true, and return that. AssertionError after `seconds`."""
        end = time.monotonic() + seconds
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < end, f"not within {seconds} s: {script}; console: {self.errors()}"
            time.sleep(0.05)
        return value

    def element(self, selector: str):
        """The first element that a CSS selector matches (Selenium's WebElement)."""
        return self.driver.find_element("css selector", selector)

    def click(self, selector: str, at: tuple[float, float] | None = None) -> None:
        """Click an element: its middle, or `at` CSS pixels from its top left corner."""
        self._pointer(selector, at).click().perform()

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float], hold: bool = False) -> None:
        """Press at `start`, move to `end` (CSS pixels from the element's top left corner), let go unless `hold`."""
        moves = self._pointer(selector, start).click_and_hold()
        for part in (0.25, 0.5, 0.75, 1.0):
            x, y = (a + part * (b - a) for a, b in zip(start, end, strict=True))
            self._move(moves, selector, (x, y))
        (moves if hold else moves.release()).perform()

    def _pointer(self, selector: str, at: tuple[float, float] | None):
        from selenium.webdriver import ActionChains

        element = self.element(selector)
        self.run("arguments[0].scrollIntoView({block: 'nearest'})", element)
        chain = ActionChains(self.driver, duration=20)
        return self._move(chain, selector, at) if at else chain.move_to_element(element)

    def _move(self, chain, selector: str, at: tuple[float, float]):
        element = self.element(selector)  # Selenium counts from the middle
        box = self.run("const b = arguments[0].getBoundingClientRect(); return [b.width, b.height]", element)
        return chain.move_to_element_with_offset(element, *(round(p - s / 2) for p, s in zip(at, box, strict=True)))

    def keys(self, text: str) -> None:
        """Type into whatever has the focus; special keys are `selenium.webdriver.Keys`."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(text).perform()

    def size(self, width: int, height: int) -> None:
        """Make the page's viewport so many CSS pixels wide and high."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def screenshot(self, path: str | Path) -> Path:
        """Write a PNG of the viewport."""
        assert self.driver.save_screenshot(str(path)), f"cannot write {path}"
        return Path(path)

    def errors(self) -> list[str]:
        """Console errors and uncaught exceptions since `open`."""
        self.console += self.driver.get_log("browser")
        return [entry["message"] for entry in self.console if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Addresses that the page asked for since `open`, but for itself, data: and blob:."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                parameters = message["params"]
                self.traffic.append(parameters["request"]["url"] if "request" in parameters else parameters["url"])
        own = self.address.partition("#")[0]
        return [url for url in self.traffic if url != own and not url.startswith(("data:", "blob:", "about:"))]

    def close(self) -> None:
        """End the browser and remove its profile."""
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped, with a message, where none is installed."""
    pytest.importorskip("selenium", reason="selenium is not installed: pip install -e '.[dev]'")
    if None in binaries():
        pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver")
    running = Browser()
    yield running
    running.close()
