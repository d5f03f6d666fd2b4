"""Parts of observations: where each kind of environment gets them from, their order, and the names of features."""

import json
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs.adapters.copies.observation_rows import ObservationRow
from envs.adapters.gymnasium_env import GymnasiumEnv, PettingZooEnv
from envs.adapters.torchrl_env import FromTorchRL
from envs.adapters.vector_env import VectorEnv
from envs.grouping import flatten
from envs.observation_parts import feature_names, of_tensors, part_of
from envs.spec import ActionSpec, EnvSpec, GroupSpec, ObservationPart, describe, spec_of
from envs.vmas.env import VmasEnv

Part = ObservationPart
CAMERA = spaces.Box(0, 255, (5, 6, 3), np.uint8)
NESTED = spaces.Dict(
    {
        "speed": spaces.Box(-1, 1, (1,), np.float32),
        "camera": spaces.Dict({"left": CAMERA, "depth": spaces.Box(0, 1, (1, 5, 6), np.float32)}),
        "gear": spaces.Discrete(3),
        "others": spaces.Tuple([spaces.Box(-1, 1, (2, 4), np.float32), spaces.MultiBinary(2)]),
    }
)
NESTED_PARTS = (
    Part("camera.depth", (1, 5, 6), "picture"),
    Part("camera.left", (3, 5, 6), "picture", 255.0),
    Part("gear", (3,)),
    Part("others.0", (2, 4), "set"),
    Part("others.1", (2,)),
    Part("speed", (1,)),
)


def group(*parts: ObservationPart) -> GroupSpec:
    return GroupSpec("agents", ("a",), sum(p.size for p in parts), ActionSpec("discrete", nvec=(2,)), parts=parts)


def test_a_nested_space_has_a_part_per_leaf_in_the_order_of_its_row():
    row = ObservationRow(NESTED)
    assert row.parts == NESTED_PARTS and row.size == 30 + 90 + 3 + 8 + 2 + 1
    seen = NESTED.sample()
    numbers = dict(zip([p.name for p in row.parts], np.split(row(seen), np.cumsum([p.size for p in row.parts])[:-1]),
                       strict=True))  # fmt: skip
    assert np.array_equal(numbers["camera.left"].reshape(3, 5, 6), seen["camera"]["left"].transpose(2, 0, 1))
    assert np.array_equal(numbers["camera.depth"].reshape(1, 5, 6), seen["camera"]["depth"])
    assert np.array_equal(numbers["others.0"].reshape(2, 4), seen["others"][0])
    assert numbers["gear"].argmax() == seen["gear"] and numbers["speed"] == seen["speed"]


@pytest.mark.parametrize(
    ("shape", "part", "turned"),
    [
        ((8, 8, 3), Part("x", (3, 8, 8), "picture"), True),
        ((3, 8, 8), Part("x", (3, 8, 8), "picture"), False),
        ((8, 8, 2), Part("x", (8, 8, 2), "picture"), False),  # two is no number of colours
        ((3, 3, 3), Part("x", (3, 3, 3), "picture"), False),
        ((5, 7), Part("x", (5, 7), "set"), False),
        ((), Part("x", (1,)), False),
        ((2, 3, 4, 5), Part("x", (120,)), False),
    ],
)
def test_shapes_tell_kinds(shape, part, turned):
    found, order = part_of("x", shape)
    assert found == part and (order is not None) == turned


def test_a_plain_vector_has_no_parts_but_a_picture_or_set_is_one():
    assert ObservationRow(spaces.Box(-1, 1, (4,), np.float32)).parts == ()
    assert ObservationRow(spaces.Discrete(4)).parts == ()
    assert ObservationRow(CAMERA).parts == (Part("observation", (3, 5, 6), "picture", 255.0),)
    assert of_tensors(torch.zeros(7, 4)) == ()
    assert of_tensors(torch.zeros(7, 4, 2)) == (Part("observation", (4, 2), "set"),)


def test_tensors_of_a_simulator_by_sorted_keys():
    seen = {"z": torch.zeros(7, 2), "b": {"d": torch.zeros(7, 3, 2), "c": torch.zeros(7, 3, 4, 4, dtype=torch.uint8)}}
    parts = of_tensors(seen)
    assert parts == (Part("b.c", (3, 4, 4), "picture", 255.0), Part("b.d", (3, 2), "set"), Part("z", (2,)))
    assert flatten(seen).shape == (7, sum(part.size for part in parts))


def test_features_have_names():
    names = feature_names(group(Part("speed", (1,)), Part("lidar", (2,)), Part("others", (2, 2), "set")))
    assert names == ["speed", "lidar[0]", "lidar[1]", "others[0,0]", "others[0,1]", "others[1,0]", "others[1,1]"]
    assert feature_names(group(Part("image", (1, 1, 2), "picture"))) == ["image[0,0,0]", "image[0,0,1]"]
    assert feature_names(GroupSpec("agents", ("a",), 2, ActionSpec("discrete", nvec=(2,)))) == ["0", "1"]


def test_parts_are_described_and_read_again():
    spec = EnvSpec({"agents": group(*NESTED_PARTS)}, None, 5)
    assert spec_of(json.loads(json.dumps(describe(spec)))).groups["agents"].parts == NESTED_PARTS


SCOUTS = "tests.fixtures.scouts.Scouts"


@pytest.mark.parametrize("fast", ["off", "auto"])
def test_a_scenario_that_returns_a_dict(fast):
    env = VmasEnv(SCOUTS, 3, fast=fast)
    parts = env.spec.groups["agents"].parts
    assert parts == (Part("near.rest", (2,)), Part("near.set", (4, 2), "set"), Part("own", (6,)))
    plain = VmasEnv("balance", 3, fast=fast)
    assert plain.spec.groups["agents"].parts == ()
    ours, theirs = env.reset(4)[0]["agents"], plain.reset(4)[0]["agents"]
    assert torch.equal(ours, torch.cat([theirs[..., 14:], theirs[..., 6:14], theirs[..., :6]], -1))


def test_a_scenarios_picture_is_in_bytes():
    env = VmasEnv("tests.fixtures.scouts.Watchers", 3, fast="off")
    assert env.spec.groups["agents"].parts[0] == Part("camera", (1, 4, 4), "picture", 255.0)
    pixels = env.reset(0)[0]["agents"][..., :16]
    assert 1 < pixels.max() <= 255 and torch.equal(pixels, pixels.round())


def test_agents_with_other_parts_are_split_or_padded_without_names():
    split = VmasEnv(SCOUTS, 3, fast="off", scenario_kwargs={"odd": True})
    assert {n: g.agents for n, g in split.spec.groups.items()} == {
        "agent_0": ("agent_0", "agent_1"), "agent_1": ("agent_2",)}  # fmt: skip
    assert split.spec.groups["agent_1"].parts[0].name == "far.rest"
    padded = VmasEnv(SCOUTS, 3, fast="off", scenario_kwargs={"odd": True}, heterogeneous="pad")
    assert padded.spec.groups["agents"].parts == ()


class Driver(gymnasium.Env):
    """Sees a picture [4, 5, 3] and a speed."""

    observation_space = spaces.Dict({"speed": spaces.Box(-1, 1, (2,), np.float32),
                                     "camera": spaces.Box(0, 255, (4, 5, 3), np.uint8)})  # fmt: skip
    action_space = spaces.Discrete(2)

    def __init__(self, **kwargs):
        self.kwargs = kwargs

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self._see(), {}

    def _see(self):
        self.seen = {"speed": self.np_random.uniform(-1, 1, 2).astype(np.float32),
                     "camera": self.np_random.integers(0, 256, (4, 5, 3), dtype=np.uint8)}  # fmt: skip
        return self.seen

    def step(self, action):
        return self._see(), 1.0, False, False, {}


gymnasium.register("Driver-v0", f"{__name__}:Driver", max_episode_steps=6)
gymnasium.register("Drivers-v0", f"{__name__}:Driver", max_episode_steps=6,
                   vector_entry_point="tests.envs.vector_cases:make", kwargs={})  # fmt: skip
DRIVER_PARTS = (Part("camera", (3, 4, 5), "picture", 255.0), Part("speed", (2,)))


def shown(env: Driver) -> torch.Tensor:
    return torch.cat([torch.from_numpy(env.seen["camera"]).permute(2, 0, 1).flatten().float(),
                      torch.from_numpy(env.seen["speed"])])  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_copies_of_a_gymnasium_environment(workers):
    env = GymnasiumEnv(f"{__name__}:Driver-v0", 2, workers=workers)
    assert env.spec.groups["agents"].parts == DRIVER_PARTS and env.spec.groups["agents"].observation_size == 62
    first = env.reset(3)[0]["agents"]
    if not workers:
        copies = env.crew.shares[0].copies
        assert torch.equal(first[:, 0], torch.stack([shown(copy.env.unwrapped) for copy in copies]))
        step = env.step({"agents": torch.zeros(2, 1, 1, dtype=torch.int64)})
        assert torch.equal(step.observation["agents"][:, 0], torch.stack([shown(c.env.unwrapped) for c in copies]))
    else:
        assert torch.equal(first, GymnasiumEnv(f"{__name__}:Driver-v0", 2).reset(3)[0]["agents"])
    env.close()


def test_a_vectorised_gymnasium_environment():
    env = VectorEnv("Drivers-v0", 3, kwargs={"single": Driver})
    assert env.spec.groups["agents"].parts == DRIVER_PARTS
    rows = env.reset(0)[0]["agents"][:, 0]
    assert torch.equal(rows, torch.stack([shown(one.unwrapped) for one in env.env.envs]))


class Pair:
    """Two agents in PettingZoo's manner, both with a picture; the second one's is larger with `unlike`."""

    def __init__(self, unlike=False):
        self.possible_agents = ["car_0", "car_1"]
        self.sides = {"car_0": 4, "car_1": 6 if unlike else 4}
        self.agents = []

    def observation_space(self, agent):
        return spaces.Dict({"camera": spaces.Box(0, 255, (5, self.sides[agent], 1), np.uint8)})

    def action_space(self, agent):
        return spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.agents = list(self.possible_agents)
        return self._see(), {agent: {} for agent in self.agents}

    def _see(self):
        return {a: {"camera": np.full((5, self.sides[a], 1), i, np.uint8)} for i, a in enumerate(self.agents)}

    def step(self, actions):
        zero = dict.fromkeys(self.agents, 0.0)
        no = dict.fromkeys(self.agents, False)
        return self._see(), zero, no, no, {agent: {} for agent in self.agents}

    def close(self):
        pass


def test_agents_of_pettingzoo_are_together_where_their_parts_are_alike():
    make = partial(PettingZooEnv, f"{__name__}.Pair", 2)
    assert make().spec.groups["agents"].parts == (Part("camera", (1, 5, 4), "picture", 255.0),)
    apart = make(kwargs={"unlike": True}).spec.groups
    assert [g.parts[0].shape for g in apart.values()] == [(1, 5, 4), (1, 5, 6)]
    assert make(kwargs={"unlike": True}, heterogeneous="pad").spec.groups["agents"].parts == ()


def test_several_keys_of_a_torchrl_environment():
    env = FromTorchRL("tests.envs.torchrl_cases.Masked", 2)
    assert env.spec.groups["agents"].parts == (Part("more", (1,)), Part("place", (3,)))
    ours = FromTorchRL("torchrl.envs.GymEnv", 2, kwargs={"env_name": "Driver-v0"})
    assert ours.spec.groups["agents"].parts == DRIVER_PARTS
    row = ours.reset(0)[0]["agents"][:, 0]
    assert torch.equal(row[:, :60].view(2, 3, 4, 5), ours._now.get("camera").permute(0, 3, 1, 2).float())
