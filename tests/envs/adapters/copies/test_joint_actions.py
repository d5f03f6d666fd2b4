"""Actions without bounds, and numbers joined with choices, in the environments of others and in ours as theirs."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from torchrl.data import Unbounded
from torchrl.envs.utils import check_env_specs

from envs.adapters.copies.action_rows import choices, in_space
from envs.adapters.gymnasium_env import GymnasiumEnv, PettingZooEnv
from envs.adapters.object_env import action_spec
from envs.adapters.to_gymnasium import GymnasiumSingle, GymnasiumVector, pettingzoo_parallel
from envs.adapters.to_torchrl import TorchRLEnv
from envs.adapters.torchrl_env import FromTorchRL
from envs.adapters.vector_env import VectorEnv
from envs.base import EnvError
from envs.spec import ActionSpec
from envs.vmas.env import VmasEnv
from tests.envs.joint_cases import Joint

HERE = "tests.envs.joint_cases"
ROW = [3.0, 0.5, -0.25, 1, 2, 0]  # deep's number, push's two, deep's two choices, say's
talk = partial(VmasEnv, "simple_reference", words="discrete", max_steps=4, fast="off")


@pytest.mark.parametrize(
    "make",
    [
        lambda: GymnasiumEnv(f"{HERE}:Endless-v0", num_envs=4),
        lambda: GymnasiumEnv(f"{HERE}:Joint-v0", num_envs=4, kwargs={"masks": True}),
        lambda: VectorEnv(f"{HERE}:Joint-v0", num_envs=4),
        lambda: PettingZooEnv(f"{HERE}.Pair", num_envs=4),
    ],
)
def test_random_play_is_finite_allowed_and_a_function_of_its_seed(make):
    runs = []
    for _ in range(2):
        env, generator = make(), torch.Generator().manual_seed(5)
        actions = []
        for _ in range(40):  # the environments hold what they get against their spaces and masks
            actions.append(env.random_action(generator))
            env.step(actions[-1])
        runs.append(actions)
        env.close()
    for first, second in zip(*runs, strict=True):
        for name in first:
            assert first[name].isfinite().all() and torch.equal(first[name], second[name])


def test_boxes_without_bounds_are_clamped_on_their_finite_sides_alone():
    env = GymnasiumEnv(f"{HERE}:Endless-v0", num_envs=2)
    assert env.spec.groups["agents"].action.low.tolist() == [[-torch.inf, 2, -torch.inf, 0]]
    moved = env.step({"agents": torch.tensor([[[-1e6, 0.0, 5.0, -3.0]], [[7.0, 9.0, -9.0, 3.0]]])})
    assert moved.reward["agents"].flatten().tolist() == [-1e6 + 2 - 1 + 0, 7 + 9 - 9 + 1]


def test_numbers_come_first_then_choices_both_by_sorted_keys():
    action = action_spec(Joint.action_space, "it")
    assert (action.kind, action.nvec) == ("hybrid", (2, 4, 3))
    assert action.low.tolist() == [[0, -1, -1]] and action.high.tolist() == [[torch.inf, 1, 1]]
    given = in_space(np.array(ROW), Joint.action_space)
    assert Joint.action_space.contains(given) and choices(Joint.action_space) == 9
    assert given["say"] == 5 and given["push"].tolist() == [0.5, -0.25]
    assert given["deep"][0].tolist() == [1, 2] and given["deep"][1].tolist() == [3.0]


@pytest.mark.parametrize(
    ("space", "kind", "nvec"),
    [
        (spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)]), "multi_discrete", (3, 2, 2)),
        (spaces.Dict({"a": spaces.Box(0, 1, (2,)), "b": spaces.Box(0, 1, (1, 2))}), "continuous", ()),
    ],
)
def test_what_joins_one_kind_only_is_of_that_kind(space, kind, nvec):
    action = action_spec(space, "it")
    assert (action.kind, action.nvec) == (kind, nvec)
    given = in_space(np.zeros(action.size), space)
    assert space.contains(given)


def test_other_parts_are_refused():
    with pytest.raises(EnvError, match="it: its actions are Text.*; Box, Discrete, .* and Tuple or Dict of them"):
        action_spec(spaces.Tuple([spaces.Discrete(2), spaces.Text(3)]), "it")


def check_stepped(env):
    moved = env.step({"agents": torch.tensor([[ROW]] * 3)})
    assert moved.next_observation["agents"][:, 0].tolist() == [[3.0, 0.5, -0.25, 1, 2, 5]] * 3
    moved = env.step({"agents": torch.tensor([[[-1.0, 2.0, 0.0, 0, 3, 2]]] * 3)})  # numbers are clamped, choices not
    assert moved.next_observation["agents"][:, 0].tolist() == [[0, 1, 0, 0, 3, 7]] * 3


def test_copies_get_what_their_space_holds():
    env = GymnasiumEnv(f"{HERE}:Joint-v0", num_envs=3)
    check_stepped(env)
    saved = env.snapshot()
    env.restore(saved)
    assert torch.equal(env.snapshot()["actions"], saved["actions"]) and saved["actions"].shape == (3, 2, 6)


def test_vectorised_environments_get_batches_of_it():
    check_stepped(VectorEnv(f"{HERE}:Joint-v0", num_envs=3))


def test_masks_of_the_choices_are_those_of_the_environment():
    env = GymnasiumEnv(f"{HERE}:Joint-v0", num_envs=3, kwargs={"masks": True})
    assert env.spec.groups["agents"].masks == ("action",)
    for _ in range(10):
        mask = env.masks()["agents"]["action"]
        assert mask.shape == (3, 1, 9)
        for e, copy in enumerate(env.crew.shares[0].copies):
            assert mask[e, 0].tolist() == np.concatenate(copy.env.unwrapped.open).astype(bool).tolist()
        env.step(env.random_action())


def test_agents_of_other_kinds_are_groups_of_their_own():
    env = PettingZooEnv(f"{HERE}.Pair", num_envs=2)
    assert {n: (g.action.kind, g.action.size) for n, g in env.spec.groups.items()} == {
        "mixed": ("hybrid", 2),
        "plain": ("discrete", 1),
    }
    moved = env.step({"mixed": torch.tensor([[[1.5, 2.0]], [[-9.0, 1.0]]]), "plain": torch.tensor([[[3]], [[0]]])})
    assert moved.reward["mixed"].flatten().tolist() == [21.5, 8.0]
    assert moved.reward["plain"].flatten().tolist() == [3.0, 0.0]


def test_hybrid_actions_are_handed_out_as_dicts():
    env, direct = talk(num_envs=3), talk(num_envs=3)
    vector = GymnasiumVector(env)
    assert vector.single_action_space["agents"] == spaces.Dict(
        {"continuous": spaces.Box(-1, 1, (2, 2), np.float32), "discrete": spaces.MultiDiscrete([[10], [10]])}
    )
    vector.reset(seed=1)
    direct.reset(1)
    vector.action_space.seed(0)
    for _ in range(6):
        action = vector.action_space.sample()
        observation = vector.step(action)[0]
        both = [torch.from_numpy(action["agents"][part]).float() for part in ("continuous", "discrete")]
        moved = direct.step({"agents": torch.cat(both, -1)})
        assert np.array_equal(observation["agents"], moved.observation["agents"].numpy())


def test_single_environments_take_hybrid_actions():
    single, parallel = GymnasiumSingle(talk(num_envs=1)), pettingzoo_parallel(talk(num_envs=1))
    single.reset(seed=1)
    first = parallel.reset(seed=1)[0]
    assert set(first) == {"agent_0", "agent_1"}
    for agent in first:
        parallel.action_space(agent).seed(0)
    action = {agent: parallel.action_space(agent).sample() for agent in first}
    assert action["agent_0"]["continuous"].shape == (2,) and action["agent_0"]["discrete"].shape == (1,)
    observation = parallel.step(action)[0]
    team = create_empty_array(parallel.action_space("agent_0"), 2)
    team = concatenate(parallel.action_space("agent_0"), list(action.values()), team)
    assert np.array_equal(single.step({"agents": team})[0]["agents"], np.stack(list(observation.values())))


def test_torchrl_takes_both_parts_side_by_side():
    env, direct = TorchRLEnv(talk(num_envs=5)), talk(num_envs=5)
    check_env_specs(env)
    env.set_seed(3)
    direct.reset(3)
    direct.reset()
    data = env.rollout(6, break_when_any_done=False)
    for t in range(6):
        action = data["agents", "action"][:, t]
        assert action["continuous"].shape == (5, 2, 2) and action["discrete"].shape == (5, 2, 1)
        moved = direct.step({"agents": torch.cat([action["continuous"], action["discrete"].float()], -1)})
        assert torch.equal(data["next", "agents", "observation"][:, t], moved.next_observation["agents"])


def test_torchrl_gets_no_range_that_it_cannot_draw_from():
    env = TorchRLEnv(GymnasiumEnv(f"{HERE}:Endless-v0", num_envs=2))
    leaf = env.full_action_spec["agents", "action"]
    assert isinstance(leaf, Unbounded) and env.rollout(5)["next", "agents", "reward"].isfinite().all()


def test_torchrls_actions_without_bounds_are_ours():
    env = FromTorchRL("torchrl.envs.GymEnv", num_envs=2, kwargs={"env_name": f"{HERE}:Endless-v0"})
    action = env.spec.groups["agents"].action
    assert action.low.tolist() == [[-torch.inf, 2, -torch.inf, 0]] and action.high[0, 2:].tolist() == [-1, 1]
    for _ in range(20):
        drawn = env.random_action(torch.Generator().manual_seed(0))
        assert env.step(drawn).reward["agents"].isfinite().all()
    free = FromTorchRL("tests.envs.torchrl_cases.Free", num_envs=2).spec.groups["agents"].action
    assert isinstance(free, ActionSpec) and free.low.tolist() == [[-torch.inf] * 2] and free.high.shape == (1, 2)
