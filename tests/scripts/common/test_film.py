"""scripts/replay.py and callbacks=replay where environments draw themselves: gymnasium's and PettingZoo's."""

from pathlib import Path

import imageio
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.evaluation.filmed_episodes import film
from agents.policies.policy import Policy
from marl.config import compose
from marl.core.errors import UserError
from marl.launch import build

GOAL = [
    "env=gymnasium", "env.num_envs=2", "env.max_steps=20", "algo=ippo", "network.hidden=[4]", "frames=32",
    "algo.rollout_steps=8", "algo.minibatch_size=8", "task.eval_episodes=2", "trainer.progress=off",
    "trainer.evaluate_every=1",
]  # fmt: skip
CASES = "tests.envs.info_cases:Info"
LENGTHS = "env.kwargs.lengths=[3,5]"  # in turn; the first is that of the reset at the beginning


def train(folder: Path, *overrides: str) -> Path:
    config = compose.check(compose.compose([*GOAL, *overrides]))
    trainer, task = build.build_trainer(config), build.build_task(config)
    folder.mkdir(parents=True)
    OmegaConf.save(config, folder / "config.yaml")
    trainer.fit(task, folder, **build.build_setup(config))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("film") / "run"
    return train(folder, f"env.id={CASES}Goal-v0", LENGTHS, "callbacks=replay", "callbacks.replay.thumbnail=10")


def brightness(pictures) -> list[int]:
    return [int(np.asarray(picture.convert("RGB"))[0, 0, 0]) for picture in pictures]


def test_a_film_shows_the_reset_and_every_step_to_the_true_last_one(run: Path) -> None:
    policy = Policy.load(run)
    shown = film(policy.metadata["env"], policy.everyone()[0], episodes=3, width=30)
    assert [brightness(each) for each in shown.pictures] == [[0, 20, 40, 60, 80, 100]] * 3  # five steps
    assert shown.pictures[0][0].size == (30, 15) and shown.fps == 10 and shown.returns == [0.0] * 3
    cut = film(policy.metadata["env"], policy.everyone()[0], max_steps=2)
    assert [brightness(each) for each in cut.pictures] == [[0, 20, 40]] and cut.pictures[0][0].size == (40, 20)


def test_evaluations_are_filmed_and_training_is_not_disturbed(run: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in (run / "replays").iterdir()) == ["16.gif", "32.gif"]
    with Image.open(run / "replays" / "32.gif") as gif:
        assert gif.n_frames == 6 and gif.info["duration"] == 100
    pictures = EventAccumulator(str(run)).Reload().Images("replay")
    assert [(p.step, p.height, p.width) for p in pictures] == [(16, 10, 80), (32, 10, 80)]
    plain = train(tmp_path / "plain", f"env.id={CASES}Goal-v0", LENGTHS)
    ours, theirs = ((folder / "metrics.csv").read_text().splitlines()[-1].split(",")[:8] for folder in (run, plain))
    assert ours == theirs


def test_the_same_command_draws_every_format(run: Path, script, tmp_path: Path) -> None:
    module = script("replay")
    every = ["html", "gif", "mp4", "png"]
    module.run(module.Options(str(run), formats=every, episodes=2, episode=1, out=str(tmp_path / "out"), speed=1))
    page = (tmp_path / "out" / "replay.html").read_text()
    assert page.count("data:image/gif;base64,") == 2 and "episode 1: 5 steps, return 0" in page
    with Image.open(tmp_path / "out" / "replay.gif") as gif:
        frames = []
        for t in range(gif.n_frames):
            gif.seek(t)
            frames.append(gif.copy())
        assert brightness(frames) == [0, 20, 40, 60, 80, 100] and gif.info["duration"] == 100
    assert len(imageio.mimread(tmp_path / "out" / "replay.mp4", memtest=False)) == 6
    with Image.open(tmp_path / "out" / "replay.png") as strip:
        assert strip.size == (160, 20)
        assert [int(np.asarray(strip)[0, x, 0]) for x in (0, 40, 80, 120)] == [0, 40, 60, 100]
    assert not (tmp_path / "out" / "replay.safetensors").exists()
    with pytest.raises(UserError, match="episode=7: the recording has 2 episodes"):
        module.run(module.Options(str(run), episodes=2, episode=7))


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ([f"env.id={CASES}Hidden-v0"], "Hidden-v0: cannot be drawn, its metadata.* are .'human'.*rgb_array is needed"),
        ([f"env.id={CASES}Broken-v0"], r"render\(\) gives list instead of a picture, uint8 \[H, W, 3\]"),
        (["env=pettingzoo", "env.env=tests.envs.info_cases.Walkers"],
         "Walkers: cannot be drawn, it refuses render_mode=rgb_array: "),
        (["env=memory"], "env._target_=envs.toy.cue_memory.MemoryEnv: cannot be drawn; "),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_before_training(env, sentence, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        train(tmp_path / "run", *env, "callbacks=replay")
    assert not list((tmp_path / "run").glob("checkpoints/*.pt"))
