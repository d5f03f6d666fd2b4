"""The pages that people look at, in a browser: on a phone, in the dark, by keyboard and for readers of the screen."""

import re
from pathlib import Path

import numpy as np
import pytest

from agents.deploy.gallery_page import gallery_page
from agents.deploy.live_page import live_page
from agents.evaluation.episode_replays import record_policy
from agents.policies.policy import Policy
from envs.rendering.animation import film_page, quantized
from envs.rendering.html_page import page, write
from envs.rendering.web_frames import web_frames
from marl.core.look.tokens import DARK, LIGHT, contrast
from marl.report import page as report
from marl.report.compare import Comparison
from marl.report.find import find
from tests.marl.report.helpers import write_run

NAMES = ["live", "replay", "gallery", "film", "report"]
PHONE, DESK = (390, 844), (1600, 1000)
READY = """const made = window.live || window.player || window.gallery;
return document.readyState === "complete" && (!made || made.ready) && (!window.live || live.engine.steps > 1)"""
# Text that is seen, with its colour and that of the nearest ground behind it.
TEXTS = """const out = [], ground = (e) => {
  for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour;
  }
};
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node; (node = walk.nextNode());) {
  const e = node.parentElement, style = getComputedStyle(e);
  if (!node.nodeValue.trim() || e.matches("script, option") || !e.getClientRects().length) continue;
  out.push([node.nodeValue.trim().slice(0, 30), e.namespaceURI.endsWith("svg") ? style.fill : style.color, ground(e)]);
}
return out"""
SMALL = """return [...document.querySelectorAll("button, select, input:not([type=checkbox]), label, article a")]
  .filter((e) => e.getClientRects().length).map((e) => [e.id || e.textContent, e.getBoundingClientRect()])
  .filter(([, box]) => box.height < 40 || box.width < 40).map(([name, box]) => `${name} ${box.width}x${box.height}`)"""
BOXES = """const b = (window.live || player).labels;
return [b.length, b.flatMap((one, i) => b.slice(i + 1).filter((other) => cover(one, other))).length]"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """One page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name}.html" for name in NAMES}
    live_page(Policy.load("zoo/simple_spread"), paths["live"], seeds=2)
    recording = record_policy(Policy.load("zoo/navigation"), 2, 0, True, 12)
    write(paths["replay"], page("player", web_frames(recording)))
    gallery_page(paths["gallery"], ["simple_spread"], live=False)
    pictures = quantized(np.full((40, 60, 3), grey, np.uint8) for grey in (0, 120, 240))
    write(paths["film"], film_page("replay", [("episode 0: 2 steps", pictures)], 0.1))
    for critic in ("concat", "local"):
        for seed in (0, 1):
            write_run(folder / "runs" / f"{critic}_{seed}", [0, 3 + seed, 9], seed=seed, critic=critic)
    report.write(folder / "report", "Report", Comparison(find([folder / "runs"])[0], reps=100))
    return {**paths, "report": folder / "report" / "report.html"}


def emulate(browser, **features: str) -> None:
    listed = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": listed})


def show(browser, path: Path, size: tuple[int, int] = PHONE) -> None:
    browser.size(*size)
    browser.open(path)
    browser.wait(READY, seconds=60)


@pytest.fixture(autouse=True)
def tidy(running_browser):
    yield
    emulate(running_browser)
    running_browser.size(1280, 900)


def rgb(colour: str) -> str:
    """ "rgb(1, 2, 3)" as "#010203"."""
    return "#" + "".join(f"{round(float(part)):02x}" for part in re.findall(r"[\d.]+", colour)[:3])


# ---- what all pages have in common


@pytest.mark.parametrize("name", NAMES)
def test_a_phone_scrolls_down_only_and_thumbs_meet_what_they_aim_at(pages, browser, name: str) -> None:
    show(browser, pages[name])
    assert browser.run("return document.scrollingElement.scrollWidth") <= PHONE[0]
    assert browser.run(SMALL) == []
    browser.size(*DESK)
    assert browser.run("return document.scrollingElement.scrollWidth") <= DESK[0]
    assert browser.errors() == [] and browser.requests() == []


@pytest.mark.parametrize("name", NAMES)
def test_the_systems_mode_colours_the_page_and_text_is_readable_in_both(pages, browser, name: str) -> None:
    for mode, colours in (("light", LIGHT), ("dark", DARK)):
        emulate(browser, color_scheme=mode)
        show(browser, pages[name], DESK)
        assert rgb(browser.run("return getComputedStyle(document.body).backgroundColor")) == colours["page"]
        texts = browser.run(TEXTS)
        faint = [(text, colour, ground) for text, colour, ground in texts if contrast(rgb(colour), rgb(ground)) < 4.5]
        assert len(texts) >= 3 and faint == []


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_is_operated_has_a_name_and_is_reached_by_tab(pages, browser, name: str) -> None:
    from selenium.webdriver import Keys

    show(browser, pages[name], DESK)
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    nodes = [node for node in nodes if not node["ignored"] and node["role"]["value"] != "RootWebArea"]
    able = {"name": "focusable", "value": {"type": "booleanOrUndefined", "value": True}}
    focusable = [node for node in nodes if able in node.get("properties", ())]
    assert focusable and [node["role"] for node in focusable if not node.get("name", {}).get("value")] == []
    controls = browser.run("""window.controls = [...document.querySelectorAll(
      "button, select, input, a, [tabindex='0']")].filter((e) => e.getClientRects().length); return controls.length""")
    reached = set()
    browser.run("document.activeElement.blur()")
    for _ in range(controls):
        browser.keys(Keys.TAB)
        reached.add(browser.run("return controls.indexOf(document.activeElement)"))
    assert reached == set(range(controls))
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


# ---- drawings


@pytest.mark.parametrize("name", ["live", "replay"])
def test_drawings_follow_the_mode_while_the_page_is_open(pages, browser, name: str) -> None:
    pixel = "document.getElementById('view').getContext('2d').getImageData(3, 3, 1, 1).data"
    for mode, colours in (("light", LIGHT), ("dark", DARK)):
        emulate(browser, color_scheme=mode)
        if mode == "light":
            show(browser, pages[name], DESK)
        stage = ",".join(str(int(colours["stage"][i : i + 2], 16)) for i in (1, 3, 5))
        browser.wait(f"return [...{pixel}].slice(0, 3).join() === arguments[0]", stage)
    assert browser.errors() == []


def test_in_the_dark_greys_change_places_and_colours_stand_out(pages, browser) -> None:
    emulate(browser, color_scheme="dark")
    show(browser, pages["replay"])
    colours = [[0, 0, 0, 1], [1, 1, 1, 1], [0.25, 0.25, 0.75, 0.5], [0.35, 0.1, 0.1, 1], [0, 0, 0, 0.2]]
    black, white, *agents, ray = browser.run("return arguments[0].map((colour) => shade(colour)[0])", colours)
    assert (rgb(black), rgb(white)) == (DARK["ink"], DARK["stage"]) and ray.endswith(",0.2)")
    ground = [int(DARK["stage"][i : i + 2], 16) for i in (1, 3, 5)]
    for colour, strongest in zip(agents, (2, 0), strict=True):
        *channels, alpha = (float(part) for part in re.findall(r"[\d.]+", colour))
        seen = [g + alpha * (c - g) for g, c in zip(ground, channels, strict=True)]
        assert channels.index(max(channels)) == strongest
        assert contrast(rgb(str(seen)), DARK["stage"]) > 2.4


@pytest.mark.parametrize("name", ["live", "replay"])
def test_labels_do_not_cover_each_other(pages, browser, name: str) -> None:
    show(browser, pages[name])
    for step in range(8):
        browser.run("window.live ? live.engine.step() : player.go(arguments[0])", step)
        count, covered = browser.run(BOXES)
        assert count == 3 and covered == 0
    # thirty in a heap: as many labels as there is room for, the first one always, and they stay where they are
    heap = """const ctx = document.createElement("canvas").getContext("2d");
    const items = Array.from({ length: 30 }, (_, i) => ({ name: `h${i}`, text: `agent_${i}`, size: 8,
      px: 150 + 40 * Math.cos(i * i), py: 150 + 40 * Math.sin(i * 7) }));
    const first = placeLabels(ctx, items, 300, 300), second = placeLabels(ctx, items, 300, 300);
    const covered = first.some((a, i) => first.slice(i + 1).some((b) => cover(a, b)));
    const steady = first.every((a, i) => a.x === second[i].x && a.y === second[i].y);
    return [first.length, covered, first[0].item.name, steady]"""
    count, covered, chosen, steady = browser.run(heap)
    assert 8 < count <= 30 and not covered and chosen == "h0" and steady
    shorter = browser.run(
        "return labelTexts(['b_0', 'b_1', 'r_0', 'r_1', 'r_2', 'r_3', 'r_4'].map((n) => 'agent_' + n))"
    )
    assert shorter["agent_b_0"] == "b_0" and browser.run("return labelTexts(['agent_0'])") == {"agent_0": "agent_0"}


@pytest.mark.parametrize(("name", "expected"), [("live", "landmark 0 x"), ("replay", "lidar 3")])
def test_observations_and_actions_are_shown_by_name(pages, browser, name: str, expected: str) -> None:
    show(browser, pages[name])
    rows = "return [...document.querySelectorAll(`#${arguments[0]} th`)].map((e) => e.textContent)"
    observed = browser.run(rows, "observation")
    assert observed[:4] == ["x", "y", "velocity x", "velocity y"] and expected in observed
    assert browser.run(rows, "action") == ["force x", "force y"]


def test_a_frame_of_the_live_page_asks_for_no_layout(pages, browser) -> None:
    show(browser, pages["live"], DESK)
    browser.driver.execute_cdp_cmd("Performance.enable", {})

    def layouts() -> float:
        metrics = browser.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "LayoutCount")

    browser.click("#play")
    browser.wait("return window.begun === undefined ? void (window.begun = live.frames) : live.frames > begun + 5")
    before, frames = layouts(), browser.run("return live.frames")
    browser.wait("return live.frames > arguments[0] + 30", frames, seconds=30)
    assert layouts() - before <= 3  # the browser's own
    browser.click("#play")
    before, frames = layouts(), browser.run("return live.frames")
    began = browser.run("return performance.now()")
    browser.wait("return live.frames > arguments[0] + 60", frames, seconds=60)
    tenths = (browser.run("return performance.now()") - began) / 100
    assert layouts() - before <= 2 * tenths + 4  # numbers and curves, ten times a second


# ---- by keyboard


def test_the_live_page_is_operated_by_keyboard(pages, browser) -> None:
    from selenium.webdriver import Keys

    show(browser, pages["live"], DESK)
    focus = "document.querySelector(arguments[0]).focus()"
    said = "return document.getElementById('said').textContent"
    browser.run(focus, "#play")
    browser.keys(" ")  # the button's own key, and not a shortcut beside it
    assert browser.run("return live.engine.playing") is False and browser.run(said) == "paused"
    browser.run(focus, "#labels")
    browser.keys(" ")
    assert browser.run("return [document.getElementById('labels').checked, live.engine.playing]") == [False, False]
    browser.wait("return live.labels.length === 0")
    browser.run(focus, "#thing")
    browser.run("const t = arguments[0]; t.value = 'landmark 1'; t.onchange()", browser.element("#thing"))
    x = browser.run("return live.engine.place('landmark 1').x")
    browser.run(focus, "#pad [data-key=ArrowRight]")
    browser.keys(Keys.ENTER)
    assert browser.run("return live.engine.place('landmark 1').x") > x + 0.02
    browser.run(focus, "#agents button:nth-child(2)")
    browser.keys(Keys.ENTER)
    assert browser.run("return [live.chosen, document.getElementById('thing').value]") == ["agent_1", "agent_1"]
    browser.run(focus, "#take")
    browser.keys(Keys.ENTER)
    assert browser.run("return live.taking()") == "agent_1" and "you steer agent_1" in browser.run(said)
    assert browser.run("return document.activeElement.id") == "take"  # the focus is not lost
    from selenium.webdriver import ActionChains

    ActionChains(browser.driver).key_down(Keys.ARROW_UP).perform()
    assert browser.run("return live.engine.about('agent_1').action") == [0, 1]
    ActionChains(browser.driver).key_up(Keys.ARROW_UP).perform()
    assert browser.run("return live.engine.about('agent_1').action") == [0, 0]
    browser.wait("return live.labels.map((box) => box.item.text).join() === 'agent_1, yours'")  # said, names or not
    browser.run(focus, "#speed")
    before = browser.run("return live.engine.speed")
    browser.keys(Keys.ARROW_RIGHT)  # the slider's own key, although an agent is steered
    assert browser.run("return live.engine.speed") > before
    assert browser.run("return live.engine.about('agent_1').action") == [0, 0]
    assert browser.errors() == []


def test_a_button_of_the_pad_steers_while_it_is_held(pages, browser) -> None:
    show(browser, pages["live"])
    browser.run("document.getElementById('play').click(); document.getElementById('take').click()")
    browser.run("document.querySelector('#pad').scrollIntoView({ block: 'center' })")
    right = "#pad [data-key=ArrowRight]"
    browser.drag(right, (20, 20), (22, 20), hold=True)
    assert browser.run("return live.engine.about('agent_0').action") == [1, 0]
    from selenium.webdriver import ActionChains

    ActionChains(browser.driver).release().perform()
    assert browser.run("return live.engine.about('agent_0').action") == [0, 0]


def test_the_player_is_operated_by_keyboard(pages, browser) -> None:
    from selenium.webdriver import Keys

    show(browser, pages["replay"], DESK)
    browser.keys(Keys.ARROW_RIGHT)
    assert browser.run("return player.frame") == 1
    browser.run("document.getElementById('scrub').focus()")
    browser.keys(Keys.ARROW_RIGHT)  # one step, not the slider's and the page's
    assert browser.run("return player.frame") == 2
    browser.run("document.getElementById('back').focus()")
    browser.keys(Keys.ENTER)
    assert browser.run("return [player.frame, player.playing]") == [1, False]
    assert browser.run("return document.getElementById('said').textContent").startswith("step 1 of 12")
    browser.run("player.go(12)")  # the end: no action is taken next
    assert browser.run("return document.querySelectorAll('#action tr').length") == 0
    assert "NaN" not in browser.run("return document.body.innerText") and browser.errors() == []


def test_who_asks_for_less_motion_starts_the_live_page(pages, browser) -> None:
    emulate(browser, reduced_motion="reduce")
    browser.size(*DESK)
    browser.open(pages["live"])
    browser.wait("return window.live && live.ready && live.frames > 5", seconds=60)
    assert browser.run("return [live.engine.playing, live.engine.steps]") == [False, 0]
    assert browser.element("#play").text == "play"
    browser.click("#play")
    browser.wait("return live.engine.steps > 2", seconds=30)


def test_a_film_is_stopped_by_its_button_and_still_for_who_asks_for_it(pages, browser) -> None:
    kind = "return document.images[0].src.slice(0, 14)"
    show(browser, pages["film"])
    assert browser.run(kind) == "data:image/gif" and browser.element("#play").text == "pause"
    browser.click("#play")
    assert browser.run(kind) == "data:image/png" and browser.element("#play").text == "play"
    emulate(browser, reduced_motion="reduce")
    show(browser, pages["film"])
    assert browser.run(kind) == "data:image/png" and browser.run("return document.images[0].naturalWidth") == 60


def test_a_reports_tables_are_sorted_by_keyboard(pages, browser) -> None:
    from selenium.webdriver import Keys

    show(browser, pages["report"], DESK)
    browser.run("document.querySelectorAll('th button')[2].focus()")
    browser.keys(Keys.ENTER)
    assert browser.run("return document.querySelectorAll('th')[2].getAttribute('aria-sort')") == "ascending"
