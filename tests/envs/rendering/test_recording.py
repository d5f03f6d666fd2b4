"""Recordings: they hold the simulator's states, survive the disk, and draw what was there."""

import numpy as np
import pytest
import torch

from envs.base import EnvError
from envs.rendering.geometry import Shape
from envs.rendering.recording import Recording, Restorer, record
from envs.rendering.scene import image, scene
from envs.rendering.web_frames import shape_row, web_frames
from envs.vmas.env import VmasEnv
from envs.vmas.simulator import scenario_names
from tests.envs.chain_cases import FEWER, SMALL


class Watcher:
    """Plays random actions and keeps the pictures that the live simulator gave."""

    def __init__(self, settings: dict, episodes: int) -> None:
        self.twin = VmasEnv(**settings, num_envs=episodes, fast="off")
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, observation):
        group = next(iter(self.twin.spec.groups))
        values = {name: value.sum(-1) for name, value in observation.items()}
        assert group in observation
        return self.twin.random_action(self.generator), values


def test_the_dead_see_and_earn_nothing() -> None:
    settings = {"scenario": "tests.envs.vmas.ends_cases.Visit", "max_steps": 9, "continuous_actions": False}
    seen = []

    def act(observation):
        seen.append(observation)
        return {"agents": torch.zeros(2, 3, 1, dtype=torch.int64)}, {}

    recorded = record(settings, act, 2, seed=5)
    alive = torch.stack([observation["/alive/agents"] for observation in seen]).bool()
    assert torch.equal(alive[:, 0, 0], torch.tensor([True] * 3 + [False] * 3 + [True] * 3 + [False]))
    assert not recorded.observation["agents"][~alive].any() and not recorded.reward["agents"][~alive[:-1]].any()
    assert recorded.reward["agents"][alive[:-1]].all() and seen[0]["/mask/agents"].shape == (2, 3, 9)


@pytest.fixture(scope="module")
def navigation() -> Recording:
    settings = {"scenario": "navigation", "max_steps": 12, "scenario_kwargs": {"n_agents": 3}}
    return record(settings, Watcher(settings, 2), 2, seed=5, note={"name": "test"})


def test_frames_are_the_simulators_states(navigation: Recording, tmp_path) -> None:
    navigation.save(tmp_path / "a.safetensors")
    loaded = Recording.load(tmp_path / "a.safetensors")
    env = VmasEnv("navigation", num_envs=2, max_steps=12, scenario_kwargs={"n_agents": 3}, fast="off")
    observation, _ = env.reset(5)
    restorer = Restorer(loaded)
    for t in range(12):
        assert torch.equal(loaded.observation["agents"][t], observation["agents"])
        assert (image(restorer.scene(t, 1), 150) == image(scene(env.simulator, 1), 150)).all()
        step = env.step({"agents": loaded.action["agents"][t]})
        assert torch.equal(step.reward["agents"], loaded.reward["agents"][t])
        observation = step.next_observation
    assert torch.equal(loaded.observation["agents"][12], observation["agents"])  # the true end, not the restart
    assert loaded.lengths == [12, 12] and loaded.terminated == [False, False] and loaded.note == {"name": "test"}
    assert torch.equal(loaded.value["agents"], loaded.observation["agents"].sum(-1))


@pytest.mark.parametrize("scenario", scenario_names())
def test_every_scenario_is_drawn_from_its_file_as_it_was(scenario: str, tmp_path) -> None:
    settings = {"scenario": scenario, "max_steps": 3, "scenario_kwargs": (SMALL | FEWER).get(scenario, {})}
    env = VmasEnv(**settings, num_envs=2, seed=5, fast="off")
    actions = [env.random_action(torch.Generator().manual_seed(t)) for t in range(3)]
    left = iter([*actions, actions[0]])  # the last only asks for the values of the end
    record(settings, lambda observation: (next(left), {}), 2, seed=5).save(tmp_path / "a.safetensors")
    restorer, pictures = Restorer(Recording.load(tmp_path / "a.safetensors")), []
    env.reset(5)
    for t in range(restorer.recording.lengths[1]):
        pictures.append(image(restorer.scene(t, 1), 100))
        assert (pictures[-1] == image(scene(env.simulator, 1), 100)).all()
        env.step(actions[t])
    assert pictures[0].std() > 0
    final = image(restorer.scene(restorer.recording.lengths[1], 1), 100)  # not the restart, as in `env` now
    assert (final != pictures[0]).any()


def test_going_back_gives_the_same_picture(navigation: Recording) -> None:
    restorer = Restorer(navigation)
    early = image(restorer.scene(3, 0), 100)
    late = image(restorer.scene(9, 0), 100)
    assert (early != late).any() and (image(restorer.scene(3, 0), 100) == early).all()


def test_episodes_end_where_they_end() -> None:
    settings = {"scenario": "balance", "max_steps": 60}
    recording = record(settings, Watcher(settings, 8), 8, seed=0)
    assert any(recording.terminated) and all(n <= 60 for n in recording.lengths)
    first = recording.terminated.index(True)
    assert len(list(recording.scenes(first))) == recording.lengths[first] + 1


def test_other_files_are_refused(tmp_path, navigation: Recording) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(EnvError, match="can't be read as a recording"):
        Recording.load(tmp_path / "x.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(EnvError, match="no recording of this version"):
        Recording.load(tmp_path / "y.safetensors")
    other = Recording(**{**vars(navigation), "settings": {"scenario": "navigation", "max_steps": 12}})
    with pytest.raises(EnvError, match="another scenario or version"):
        Restorer(other)


def test_a_film_holds_each_shape_once(navigation: Recording) -> None:
    frames = web_frames(navigation)
    assert len(frames["episodes"]) == 2 and len(frames["episodes"][0]["frames"]) == 13
    rows = [tuple(map(str, row)) for row in frames["shapes"]]
    assert len(set(rows)) == len(rows)
    drawn = Restorer(navigation).scene(7, 1)
    bounds, shapes = frames["episodes"][1]["frames"][7]
    assert bounds == pytest.approx(drawn.bounds, abs=1e-4) and len(shapes) == len(drawn.shapes)
    for index, shape in zip(shapes, drawn.shapes, strict=True):
        row = frames["shapes"][index]
        assert frames["points"][row[1]] == pytest.approx(np.ravel(shape.points).tolist(), abs=1e-4)
        assert row[0] == shape.kind and row[6] == shape.owner
    assert np.array(frames["episodes"][0]["observation"]["agents"]) == pytest.approx(
        navigation.observation["agents"][:, 0].numpy(), abs=6e-4
    )


def test_poses_of_stretched_shapes_keep_all_numbers() -> None:
    turned = Shape("line", ((0, 0), (1, 0)), (0.0, 1.0, -1.0, 0.0, 3.0, 4.0), (0, 0, 0, 1))
    stretched = Shape("line", ((0, 0), (1, 0)), (2.0, 0.0, 0.0, 1.0, 3.0, 4.0), (0, 0, 0, 1))
    assert shape_row(turned)[2] == pytest.approx([3, 4, np.pi / 2], abs=1e-4)
    assert shape_row(stretched)[2] == [2, 0, 0, 1, 3, 4]
