"""The live page in a real browser: it runs from a file, and a person can drag, take over, freeze and reset."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from agents.deploy.export import card
from agents.deploy.live_session import Session
from agents.policies.policy import Policy
from envs.base import EnvError
from marl.core.errors import UserError
from tests.fixtures.runs import make_run

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: make_run(folder / name, f"env=vmas/{env}", "env.max_steps=100")
        for name, env in [("balance", "balance"), ("navigation", "navigation"), ("simple_spread", "mpe/simple_spread")]
    }


def start(browser, page) -> None:
    browser.size(1200, 1000)
    browser.open(page)
    browser.wait("return window.live && live.ready", seconds=60)


@pytest.mark.parametrize("name", ["balance", "navigation", "simple_spread"])
def test_the_page_runs_the_scenario(runs, name: str, script, browser) -> None:
    module = script("play")
    page = module.run(module.Options(str(runs[name]), seeds=4))
    assert page.stat().st_size < 2_000_000
    start(browser, page)
    browser.wait("return live.engine.steps > 5", seconds=30)

    # take over: the arrow keys are the agent's action
    browser.run("document.querySelectorAll('#agents button')[1].click()")
    browser.keys("t")
    assert browser.run("return live.taking()") == "agent_1"
    from selenium.webdriver import ActionChains, Keys

    ActionChains(browser.driver).key_down(Keys.ARROW_RIGHT).perform()
    assert browser.run("return live.engine.about('agent_1').action") == [1, 0]
    began = browser.run("return live.engine.steps")
    browser.wait("return live.engine.steps >= arguments[0] + 3 || live.engine.steps < arguments[0]", began, seconds=30)
    ActionChains(browser.driver).key_up(Keys.ARROW_RIGHT).perform()
    assert browser.run("return live.engine.about('agent_1').action") == [0, 0]
    browser.keys("t")
    assert browser.run("return live.taking()") is None

    # freeze: it stays where it is while the others go on
    browser.click("#freeze")
    still = browser.run(
        "const p = live.engine.place('agent_1'); return [p.x, p.y, live.engine.steps, live.engine.seed]"
    )
    browser.wait(
        "return live.engine.steps > arguments[0] + 2 || live.engine.seed !== arguments[1]", *still[2:], seconds=30
    )
    now = browser.run("const p = live.engine.place('agent_1'); return [p.x, p.y, live.engine.steps, live.engine.seed]")
    if now[3] == still[3]:
        assert now[:2] == still[:2]
    browser.click("#freeze")

    # drag an agent, and a landmark (a goal, an obstacle)
    browser.click("#play")
    assert browser.run("return live.engine.playing") is False
    browser.run("live.engine.reset(0)")  # by now one may lie on another, and be dragged instead
    landmark = browser.run("return live.engine.places().find(p => p.drags && !live.engine.names.includes(p.name)).name")
    for entity in ("agent_0", landmark):
        at = browser.run("return live.at(arguments[0])", entity)
        before = browser.run("const p = live.engine.place(arguments[0]); return [p.x, p.y]", entity)
        browser.drag("#view", tuple(at), (at[0] + 60, at[1] - 30))
        after = browser.run("const p = live.engine.place(arguments[0]); return [p.x, p.y]", entity)
        assert after[0] > before[0] + 0.02 and after[1] > before[1] + 0.01, (entity, before, after)

    # reset with a seed, a single step, slow motion
    browser.click("#seed")  # typed, since the page shows the current seed in it unless one writes there
    browser.keys(Keys.CONTROL + "a" + Keys.NULL + "3")
    browser.click("#reset")
    assert browser.run("return [live.engine.seed, live.engine.steps, live.engine.done]") == [3, 0, False]
    first = browser.run("return Array.from(live.engine.s)")
    browser.click("#step")
    assert browser.run("return live.engine.steps") == 1
    browser.click("#reset")
    assert browser.run("return Array.from(live.engine.s)") == first
    browser.run("const s = document.getElementById('speed'); s.value = -4; s.dispatchEvent(new Event('input'))")
    assert browser.run("return live.engine.speed") == 1 / 16
    shown = browser.run("return document.getElementById('observation').textContent")
    assert "observation" in shown and len(shown) > 40
    browser.wait("return live.busy < 16.7", seconds=30)  # milliseconds of work per frame: fit for 60 frames a second
    assert browser.errors() == [] and browser.requests() == []


def test_seeds_are_the_simulators_and_the_page_plays_as_python_does(runs, script, browser) -> None:
    """The whole page, step for step: states from Python's own reset, policy and scenario in JavaScript."""
    module = script("play")
    start(browser, module.run(module.Options(str(runs["simple_spread"]), seeds=2)))
    page = browser.run("""
        const e = live.engine, out = [];
        e.playing = false; e.reset(1);
        for (let i = 0; i < 20; i++) {
          e.step();
          out.push([...e.observation.agents, ...e.wanted.agents, ...e.values.agents]);
        }
        return out;""")
    policy = Policy.load(runs["simple_spread"])
    session = Session(policy, {k: v for k, v in policy.metadata["env"].items() if not k.startswith("_")})
    session.reset(1)
    for row in page:
        session.step()
        mine = [
            *session.observation["agents"].flatten().tolist(),
            *session.wanted["agents"].flatten().tolist(),
            *session.values["agents"].flatten().tolist(),
        ]
        assert row == pytest.approx(mine, abs=1e-4)


@contextmanager
def serving(run: Path):
    """A process that serves `run`'s page, and the page's address."""
    command = [sys.executable, str(ROOT / "scripts" / "play.py"), f"ckpt={run}", "serve=true", "port=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line + process.stdout.read()
        yield process, line.split()[0]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(runs):
    """The address of a served page."""
    with serving(runs["navigation"]) as (_, address):
        yield address


def test_the_served_page_in_a_browser(server: str, browser) -> None:
    pytest.importorskip("aiohttp", reason="pip install -e '.[serve]'")
    start(browser, server)
    browser.wait("return live.engine.steps > 2", seconds=60)
    browser.click("#play")
    browser.wait("return live.engine.playing === false", seconds=20)
    at = browser.run("return live.at('agent_1')")
    browser.drag("#view", tuple(at), (at[0] + 80, at[1]))
    moved = "return live.at('agent_1')[0] > arguments[0] + 20"
    browser.wait(moved, at[0], seconds=20)
    browser.run("live.engine.socket.close()")
    browser.wait("return document.getElementById('note').textContent.includes('ended')", seconds=20)
    assert browser.errors() == []


def test_ctrl_c_ends_the_server_at_once_whatever_browsers_do(runs, browser) -> None:
    pytest.importorskip("aiohttp", reason="pip install -e '.[serve]'")
    with serving(runs["navigation"]) as (process, address):
        start(browser, address)
        browser.wait("return live.engine.steps > 2", seconds=60)
        host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
        with socket.create_connection((host, int(port))) as stuck:  # a browser that no longer reads, nor says goodbye
            key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13"
            head = f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}"
            stuck.sendall(f"{head}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n".encode())
            assert stuck.recv(12) == b"HTTP/1.1 101"
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            output, _ = process.communicate(timeout=60)
            assert time.monotonic() - began < 5 and process.returncode == 0 and output == ""
        browser.wait("return document.getElementById('note').textContent.includes('ended')", seconds=20)


def test_several_connections_have_worlds_of_their_own(server: str) -> None:
    aiohttp = pytest.importorskip("aiohttp", reason="pip install -e '.[serve]'")

    async def talk() -> None:
        headers = {"Origin": server.rstrip("/")}
        async with aiohttp.ClientSession() as session:

            async def connect():
                return await session.ws_connect(f"{server}ws", headers=headers)

            async def until(socket, condition):
                while not condition(message := json.loads((await asyncio.wait_for(socket.receive(), 60)).data)):
                    pass
                return message

            one, two = await connect(), await connect()
            for socket in (one, two):
                assert (await until(socket, lambda m: "hello" in m))["hello"]["scenario"] == "navigation"
                await socket.send_json({"do": "play", "on": False})
                await until(socket, lambda m: m.get("playing") is False)
            await one.send_json({"do": "drag", "name": "agent_0", "x": 0.9, "y": 0.8})
            message = await until(
                one, lambda m: any(p["name"] == "agent_0" and abs(p["x"] - 0.9) < 1e-6 for p in m["places"])
            )
            assert message["about"]["agent_0"]["observation"][:2] == pytest.approx([0.9, 0.8])
            await two.send_json({"do": "reset", "seed": 4})
            other = await until(two, lambda m: m["seed"] == 4)
            assert all(abs(p["x"] - 0.9) > 1e-6 for p in other["places"])
            await one.close()  # one leaves, rudely or not: the other goes on
            for nonsense in ('{"do": "fly"}', "nonsense", '{"do": "drag", "name": "nobody", "x": 1, "y": 2}', "[]",
                             '{"do": "speed", "value": NaN}', "[" * 4000):  # fmt: skip
                await two.send_str(nonsense)
                assert "error" in await until(two, lambda m: True)
            await two.send_json({"do": "step"})
            assert (await until(two, lambda m: "steps" in m))["steps"] == 1
            await two.close()
            with pytest.raises(aiohttp.WSServerHandshakeError):  # a page from elsewhere may not connect
                await session.ws_connect(f"{server}ws", headers={"Origin": "http://example.org"})

    asyncio.run(talk())


def test_a_missing_web_library_is_reported_in_a_sentence(runs, script, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "agents.deploy.live_server", raising=False)
    module = script("play")
    with pytest.raises(UserError, match=r"serve=true: aiohttp is not installed; run pip install -e '\.\[serve\]'"):
        module.run(module.Options(str(runs["navigation"]), serve=True))


def settled(run: Path) -> tuple[Policy, dict]:
    """A run's policy and the settings of its environment."""
    policy = Policy.load(run)
    return policy, {k: v for k, v in policy.metadata["env"].items() if not k.startswith("_")}


def test_a_session_obeys(runs) -> None:
    session = Session(*settled(runs["simple_spread"]))
    session.command({"do": "freeze", "name": "agent_2", "on": True})
    session.command({"do": "act", "name": "agent_0", "action": [1.0, 0.0]})
    place = session.entities["agent_2"].state.pos.clone()
    for _ in range(3):
        session.command({"do": "step"})
    assert (session.entities["agent_2"].state.pos == place).all()
    assert session.entities["agent_0"].state.vel[0, 0] > 0.1 and session.steps == 3
    with pytest.raises(UserError, match="not understood"):
        session.command({"do": "act", "name": "agent_0", "action": [1.0]})
    for _ in range(200):
        session.step()
        if session.done:
            break
    assert session.done
    session.step()
    assert session.seed == 1 and session.steps == 0


NUMBERS = [float("nan"), float("inf"), -float("inf"), 10**400, "nan", "1", True, None, [1.0], {}]


@pytest.mark.parametrize("word", ["speed", "reset", "drag x", "drag y", "act"])
def test_a_session_takes_finite_numbers_only(runs, word: str) -> None:
    session = Session(*settled(runs["simple_spread"]))
    for value in NUMBERS:
        command = {
            "speed": {"do": "speed", "value": value},
            "reset": {"do": "reset", "seed": value},
            "drag x": {"do": "drag", "name": "agent_0", "x": value, "y": 0.0},
            "drag y": {"do": "drag", "name": "agent_0", "x": 0.0, "y": value},
            "act": {"do": "act", "name": "agent_0", "action": [value, 0.0]},
        }[word]
        before = session.frame()
        with pytest.raises(UserError, match="not understood"):
            session.command(command)
        assert session.frame() == before and session.speed == 1.0 and not session.held and not session.taken
    with pytest.raises(UserError, match="not understood"):  # finite, and far beyond what float32 can move
        session.command({"do": "drag", "name": "agent_0", "x": 1e30, "y": 0.0})


def test_the_page_takes_finite_numbers_only(runs, script, browser) -> None:
    module = script("play")
    start(browser, module.run(module.Options(str(runs["balance"]), seeds=2)))
    browser.wait("return live.engine.steps > 2", seconds=30)
    for command in ("{do: 'speed', value: NaN}", "{do: 'reset', seed: Infinity}", "{do: 'speed', value: '2'}",
                 "{do: 'drag', name: 'agent_0', x: NaN, y: 0}",
                 "{do: 'act', name: 'agent_0', action: [NaN, 0]}"):  # fmt: skip
        assert "must be finite" in browser.run(f"return live.engine.command({command})")
    browser.run("document.getElementById('speed').value = 0; live.engine.speed = 1")
    began = browser.run("return live.engine.steps")
    browser.wait("return live.engine.steps > arguments[0] + 2 || live.engine.steps < arguments[0]", began, seconds=30)
    assert browser.run("return [live.engine.speed, live.engine.held.size, live.engine.taken.size]") == [1, 0, 0]
    assert browser.errors() == []


def test_the_page_says_what_was_really_trained(runs, script, tmp_path: Path) -> None:
    """A run that ended long before its budget of 600,000 frames."""
    run, module = make_run(tmp_path / "run", "trainer.max_iterations=2", "frames=600000"), script("play")
    page = module.run(module.Options(str(run), seeds=1)).read_text()
    assert "trained for 80 frames" in page and "600,000" not in page
    policy = Policy.load(run)
    assert policy.metadata["run"]["frames"] == 80 and "| frames | 80 |" in card(policy, "onnx")


def test_scenarios_that_cannot_run_in_a_page_say_so(script, tmp_path: Path) -> None:
    run, module = make_run(tmp_path / "push", "env=vmas/mpe/simple_push"), script("play")
    with pytest.raises(EnvError, match="'mpe/simple_push' can't run as JavaScript: .*serve=true") as error:
        module.run(module.Options(str(run)))
    assert "\n" not in str(error.value) and not (run / "live.html").exists()
