"""The gallery in a browser: every loop moves, no error, no request; and the zoo that it shows is whole and small."""

import json
import re
from pathlib import Path

import pytest
import torch

from agents.deploy import gallery_page, zoo_card
from agents.policies.policy import Policy
from marl.core.zoo import index as zoo

ROOT = Path(__file__).resolve().parents[2]
ZOO = ROOT / "docs" / "zoo"
PAGE = ZOO / "gallery.html"
LARGEST = 8_000_000  # bytes of the folder
CARD = {"format", "name", "about", "scenario", "algorithm", "trained", "evaluated", "licence", "sha256", "bytes"}
TRAINED = {"command", "commit", "frames", "seconds", "seed"}
# What a canvas shows, as one number that any change of a picture changes.
SHOWN = """const c = document.querySelectorAll('canvas')[arguments[0]];
const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
let sum = 0; for (let i = 0; i < d.length; i += 4) sum = (sum * 31 + d[i] + 3 * d[i + 1] + 7 * d[i + 2]) % 1000003;
return sum"""


@pytest.fixture(autouse=True)
def ours(monkeypatch) -> None:
    monkeypatch.setattr(zoo, "_chosen", str(ZOO))


def emulate(browser, **features: str) -> None:
    listed = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": listed})


def start(browser) -> int:
    """Open the page; how many loops there are."""
    browser.size(1200, 900)
    browser.open(PAGE)
    browser.wait("return window.gallery && gallery.ready", seconds=60)
    return browser.run("return gallery.loops.length")


# ---- the page


def test_every_loop_moves_and_nothing_is_asked_for(browser) -> None:
    count = start(browser)
    assert count == len(list(zoo.entries()))
    for i in range(count):
        browser.run("document.querySelectorAll('canvas')[arguments[0]].scrollIntoView({block: 'center'})", i)
        browser.wait("return gallery.loops[arguments[0]].drawn > 0", i, seconds=30)
        first = browser.run(SHOWN, i)
        browser.wait(f"const shown = function () {{ {SHOWN} }}; return shown(arguments[0]) !== arguments[1]", i, first)
    assert browser.errors() == [] and browser.requests() == []


def test_only_what_is_in_view_is_drawn(browser) -> None:
    browser.size(1200, 900)
    count = start(browser)
    browser.size(330, 420)
    browser.run("scrollTo(0, 0)")
    browser.wait("return !gallery.loops.at(-1).visible && gallery.loops[0].visible", seconds=30)
    last, first = browser.run("return [gallery.loops.at(-1).drawn, gallery.loops[0].drawn]")
    browser.wait("return gallery.loops[0].drawn > arguments[0] + 3", first, seconds=30)
    assert count > 3 and browser.run("return gallery.loops.at(-1).drawn") == last
    assert browser.run("return document.scrollingElement.scrollWidth") <= 330
    browser.size(1200, 900)


def test_who_asks_for_less_motion_gets_pictures_until_they_click(browser) -> None:
    emulate(browser, reduced_motion="reduce", color_scheme="dark")
    try:
        start(browser)
        browser.wait("return gallery.loops[0].drawn > 0", seconds=30)
        page = browser.run("return getComputedStyle(document.body).backgroundColor")
        assert max(int(part) for part in re.findall(r"\d+", page)[:3]) < 60  # dark
        before = browser.run("return gallery.loops.map((loop) => loop.moment)")
        assert all(moment > 0 for moment in before) and browser.element("#play").text == "play"
        browser.click("canvas")
        browser.wait("return gallery.loops[0].moment !== arguments[0]", before[0], seconds=30)
        assert browser.run("return gallery.loops.map((loop) => loop.moment)")[1:] == before[1:]
        browser.click("#play")
        browser.wait("return gallery.loops[1].moment !== arguments[0]", before[1], seconds=30)
        assert browser.element("#play").text == "pause" and browser.errors() == []
    finally:
        emulate(browser)


def test_a_card_of_the_page_says_the_return_and_links_to_a_live_page(browser) -> None:
    start(browser)
    for name in zoo.entries():
        card, text = zoo.card(name), browser.element(f"#{name}").text
        mean = card["evaluated"][card["evaluated"]["quoted"]]["all"]["mean"]
        assert f"return {mean:.3g} [" in text and f"ckpt=zoo/{name}" in text and card["scenario"] in text
        others = card["evaluated"].get("against", {})
        assert all(f"against {group}: {player}" in text for group, player in others.items())
        assert name != "football" or others == {"agent_red": "random"}
    links = [Path(link.get_attribute("href").removeprefix("file://"))
             for link in browser.driver.find_elements("css selector", "article a")]  # fmt: skip
    assert links and all(path.is_file() and path.parent == ZOO / "live" for path in links)
    browser.open(links[0])
    browser.wait("return window.live && live.ready", seconds=60)
    assert browser.errors() == [] and browser.requests() == []


def test_a_loop_is_of_those_who_play_in_evaluations() -> None:
    """Football's return is against random red, so red does not play as blue does in its loop."""
    policy = Policy.load("zoo/football")
    recording, counted = gallery_page.judged_episodes("football", policy, deterministic=True)
    assert counted == ("agent_blue",)
    seen = {name: recording.observation[name][:-1] for name in recording.action}
    played, same = policy.everyone()[0], {}
    for name, actor in played.items():
        mode = actor.head.to_env(actor.act(seen[name], deterministic=True)[0])
        same[name] = torch.isclose(mode, recording.action[name], atol=1e-5).float().mean().item()
    assert same["agent_blue"] == 1 and same["agent_red"] < 0.2
    drawn = recording.action["agent_red"]
    assert drawn.mean().abs() < 0.1 and abs(drawn.std().item() - 3**-0.5) < 0.05  # uniform from -1 to 1


def test_a_live_page_that_would_be_too_large_is_left_out(tmp_path: Path, monkeypatch, capsys) -> None:
    page, policy = tmp_path / "simple.html", Policy.load("zoo/simple")
    assert gallery_page.written_live(policy, page) and page.stat().st_size < gallery_page.LIVE_BYTES
    monkeypatch.setattr(gallery_page, "LIVE_BYTES", 1000)
    assert not gallery_page.written_live(policy, page) and not page.exists()
    assert re.search(r"simple: no live page: it would be \d+ kB, more than 1\n", capsys.readouterr().out)


# ---- the zoo of this repository


def test_the_index_is_of_the_files_that_are_there(tmp_path: Path) -> None:
    for path in ZOO.glob("*.*"):
        if path.suffix in (".safetensors", ".json") and path.name != zoo.INDEX:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in sorted(tmp_path.glob("*.safetensors")):
        zoo.write_entry(tmp_path, path.stem)
    assert (tmp_path / zoo.INDEX).read_text() == (ZOO / zoo.INDEX).read_text()
    assert sum(path.stat().st_size for path in ZOO.rglob("*") if path.is_file()) < LARGEST


@pytest.mark.parametrize("name", sorted(json.loads((ZOO / zoo.INDEX).read_text())["policies"]))
def test_a_policy_is_whole_and_its_card_says_all(name: str) -> None:
    policy, card = Policy.load(f"zoo/{name}"), zoo.card(name)
    assert card.keys() >= CARD and card["trained"].keys() >= TRAINED and "GPL-3.0" in card["licence"]
    assert card["trained"]["command"].startswith("python scripts/train.py ") and card["trained"]["commit"]
    assert (card["sha256"], card["bytes"]) == (zoo.entries()[name].sha256, zoo.entries()[name].bytes)
    groups = policy.spec.groups
    actions = policy.act({n: torch.zeros(2, g.n_agents, g.observation_size) for n, g in groups.items()})
    for group, spec in groups.items():
        assert actions[group].shape == (2, spec.n_agents, spec.action.size) and actions[group].isfinite().all()
    quoted = card["evaluated"][card["evaluated"]["quoted"]]["all"]
    low, high = quoted["ci95"]
    assert low <= quoted["mean"] <= high and quoted["mean"] > card["evaluated"]["random"]["all"]["mean"]


def test_a_card_is_met_again() -> None:
    name = next(iter(zoo.entries()))
    assert all(row["met"] for row in zoo_card.verified(name))
