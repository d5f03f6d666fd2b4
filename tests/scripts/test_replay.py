"""scripts/replay.py and callbacks=replay: recordings, pictures, and the player in a real browser."""

import sys
import time
from pathlib import Path

import imageio
import numpy as np
import pytest
from PIL import Image

from envs.rendering.recording import Recording
from marl.core.errors import UserError
from tests.fixtures.runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(
        tmp_path_factory.mktemp("runs") / "navigation",
        "env=vmas/navigation",
        "callbacks=replay",
        "callbacks.replay.thumbnail=60",
        "env.scenario_kwargs.n_agents=4",
    )


@pytest.fixture(scope="module")
def replay(run: Path, script):
    module = script("replay")
    module.run(module.Options(str(run), formats=["html", "gif", "mp4", "png"], episodes=2, max_steps=100, width=120))
    return run / "replay"


def test_training_records_its_evaluations(run: Path) -> None:
    files = sorted((run / "replays").iterdir())
    assert [f.name for f in files] == ["40.safetensors", "80.safetensors"]
    first, second = (Recording.load(f) for f in files)
    assert first.note["iteration"] == 1 and first.lengths == [15] and "agents" in first.value
    assert (first.observation["agents"][0] == second.observation["agents"][0]).all()  # the same start
    assert (first.action["agents"] != second.action["agents"]).any()  # another policy


def test_tensorboard_gets_a_strip(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    pictures = events.Images("replay")
    assert [(p.step, p.height, p.width) for p in pictures] == [(40, 60, 240), (80, 60, 240)]


def test_recording_does_not_disturb_training(run: Path, tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", "env=vmas/navigation", "env.scenario_kwargs.n_agents=4")
    ours, theirs = ((f / "metrics.csv").read_text().splitlines()[-1].split(",")[:8] for f in (run, plain))
    assert ours == theirs


def test_pictures_move(replay: Path) -> None:
    with Image.open(replay / "replay.gif") as gif:
        assert gif.size == (120, 120) and gif.n_frames > 50
        first = np.asarray(gif.convert("RGB"))
        gif.seek(gif.n_frames - 1)
        assert (np.asarray(gif.convert("RGB")) != first).any()
    frames = imageio.mimread(replay / "replay.mp4", memtest=False)
    assert len(frames) == 101 and frames[0].shape == (120, 120, 3)
    with Image.open(replay / "replay.png") as strip:
        assert strip.width == 4 * strip.height


def test_the_player_in_a_browser(replay: Path, browser, tmp_path: Path) -> None:
    page = replay / "replay.html"
    assert page.stat().st_size < 1_000_000  # two episodes of 100 steps and 4 agents with 12 rays each
    browser.size(1200, 1000)
    browser.open(page)
    browser.wait("return window.player && player.ready", seconds=60)
    assert browser.run("return document.title") == "navigation: replay"
    before = browser.run("return document.getElementById('view').toDataURL()")
    browser.click("#play")
    browser.wait("return player.frame > 5", seconds=30)
    browser.click("#play")
    assert browser.run("return player.playing") is False
    browser.run("const s = document.getElementById('scrub'); s.value = 60; s.dispatchEvent(new Event('input'))")
    assert browser.run("return player.frame") == 60
    assert "step 60 of 100" in browser.run("return document.getElementById('status').textContent")
    assert browser.run("return document.getElementById('view').toDataURL()") != before
    browser.keys(" ")  # the keyboard plays too, wherever the focus is
    browser.wait("return player.frame > 60", seconds=30)
    browser.keys(" ")
    assert browser.run("return player.playing") is False
    browser.run("document.querySelectorAll('#agents button')[2].click()")
    assert browser.run("return player.chosen") == "agent_2"
    shown = browser.run("return document.getElementById('observation').textContent")
    recording, t = Recording.load(replay / "replay.safetensors"), browser.run("return player.frame")
    assert shown.startswith("agent_2: observation")
    assert f"{recording.observation['agents'][t, 0, 2, 0].item():.3f}" in shown
    browser.run("const e = document.getElementById('episode'); e.value = 1; e.dispatchEvent(new Event('change'))")
    assert browser.run("return [player.episode, player.frame]") == [1, 0]
    rays = "const r = document.getElementById('rays'); r.checked = !r.checked; r.dispatchEvent(new Event('change'));"
    with_rays = browser.run("player.go(10); return document.getElementById('view').toDataURL()")
    assert browser.run(f"{rays} return document.getElementById('view').toDataURL()") != with_rays
    picture = np.asarray(Image.open(browser.screenshot(tmp_path / "player.png")).convert("RGB"))
    assert (picture[100:700, 20:700] != picture[100, 20]).any(-1).mean() > 0.005  # something is drawn
    assert browser.errors() == [] and browser.requests() == []


def test_a_recording_is_drawn_again_without_the_run(run: Path, script, tmp_path: Path) -> None:
    module = script("replay")
    began = time.perf_counter()
    folder = module.run(module.Options(recording=str(run / "replays" / "80.safetensors"), out=str(tmp_path)))
    assert (folder / "80.html").stat().st_size > 10_000 and time.perf_counter() - began < 60


@pytest.mark.parametrize("kind", ["png", "gif"])
def test_pictures_alone_make_their_folder(kind: str, run: Path, script, tmp_path: Path) -> None:
    module, recording = script("replay"), str(run / "replays" / "80.safetensors")
    folder = module.run(module.Options(recording=recording, formats=[kind], out=str(tmp_path / "new" / "one")))
    assert (folder / f"80.{kind}").stat().st_size > 1000


def test_a_missing_encoder_is_reported_in_a_sentence(run: Path, script, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    module = script("replay")
    with pytest.raises(UserError, match=r"formats=\[mp4\]: imageio-ffmpeg is not installed; run pip install"):
        recording = str(run / "replays" / "80.safetensors")
        module.run(module.Options(recording=recording, formats=["mp4"], out=str(tmp_path)))


def test_mistakes(run: Path, script, shell, tmp_path: Path) -> None:
    module = script("replay")
    with pytest.raises(UserError, match="a run directory or checkpoint is needed"):
        module.run(module.Options())
    with pytest.raises(UserError, match="episode=7: the recording has 1 episodes"):
        module.run(module.Options(recording=str(run / "replays" / "80.safetensors"), episode=7, out=str(tmp_path)))
    done = shell(tmp_path, "replay", f"ckpt={run}", "format=[html]")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: unknown key 'format'; did you mean 'formats'?")
