"""Gymnasium's vectorised environments behind the contract, in each of their ways of resetting."""

import gymnasium
import numpy as np
import pytest
import torch

from envs.adapters.vector_env import VectorEnv
from envs.base import EnvError
from marl.core.seeding import spread
from tests.envs.vector_cases import Pulls, make

MODES = ("NextStep", "SameStep", "Disabled")


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Countdown-v0", vector_entry_point=make)
    yield
    del gymnasium.registry["Countdown-v0"]


def countdown(mode, num_envs=3, seed=0, **settings):
    kwargs = {"mode": mode, **settings.pop("kwargs", {})}
    return VectorEnv("Countdown-v0", num_envs, settings.pop("max_steps", 50), seed=seed, kwargs=kwargs, **settings)


def lived(env, steps, action=1):
    """{environment: its (observation, reward, next observation, terminated, truncated)}, without the waiting."""
    observed, episodes = env.reset(4)[0]["agents"], [[] for _ in range(env.num_envs)]
    for _ in range(steps):
        alive = env.masks()["agents"].get("alive", torch.ones(env.num_envs, 1, dtype=torch.bool))
        moved = env.step({"agents": torch.full((env.num_envs, 1, 1), action)})
        rows = zip(observed[:, 0].tolist(), moved.reward["agents"][:, 0].tolist(),
                   moved.next_observation["agents"][:, 0].tolist(), moved.terminated.tolist(), moved.truncated.tolist(),
                   strict=True)  # fmt: skip
        for e, row in enumerate(rows):
            if alive[e]:
                episodes[e].append(row)
            else:
                assert row[0] == [0.0, 0.0] and row[1] == 0 and not row[3] and not row[4]
        observed = moved.observation["agents"]
    return episodes


def test_every_way_to_reset_plays_the_same_episodes():
    by_mode = {mode: lived(countdown(mode), 40) for mode in MODES}
    for waiting, same, by_hand in zip(*by_mode.values(), strict=True):
        assert same == by_hand and waiting == same[: len(waiting)] and 25 < len(waiting) < 40
        for before, reward, after, terminated, truncated in same:
            assert after == [before[0] - 1, 6.0] and reward == after[0] + 6  # Discrete begins at 5 there
            assert terminated == (after[0] == 0) and not truncated
        starts = [row[0] for row, last in zip(same[1:], same, strict=False) if last[3]]
        assert all(start[1] == 0 and 2 <= start[0] <= 6 for start in starts) and len(starts) > 5


def test_steps_are_cartpoles_own():
    env, raw = VectorEnv("CartPole-v1", 5, seed=3), gymnasium.make_vec("CartPole-v1", 5)
    assert env.spec.max_steps == 500 and env.spec.groups["agents"].masks == ("alive",)
    observation, over = raw.reset(seed=spread(3, 1) % 2**31)[0], np.zeros(5, bool)
    assert torch.equal(env.reset(3)[0]["agents"][:, 0], torch.from_numpy(observation))
    generator, ends = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        action = env.random_action(generator)
        moved, (observation, reward, terminated, _, _) = env.step(action), raw.step(action["agents"].flatten().numpy())
        assert torch.equal(moved.next_observation["agents"][:, 0], torch.from_numpy(observation))
        assert moved.reward["agents"].flatten().tolist() == reward.tolist()
        assert moved.terminated.tolist() == terminated.tolist() and (reward[over] == 0).all()
        over, ends = terminated, ends + terminated.sum()
        assert env.masks()["agents"]["alive"].flatten().tolist() == (~over).tolist()
        assert not moved.observation["agents"][torch.from_numpy(over)].any()
    assert ends > 20


@pytest.mark.parametrize("masks", ["observation", "info"])
@pytest.mark.parametrize("mode", MODES)
def test_masks_are_read_and_kept_by_random_play(mode, masks):
    env = countdown(mode, kwargs={"masks": masks})
    group = env.spec.groups["agents"]
    assert "action" in group.masks and group.observation_size == 2
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):  # the environment refuses closed choices
        group_masks = env.masks()["agents"]
        alive = group_masks["alive"][:, 0] if mode == "NextStep" else torch.ones(3, dtype=torch.bool)
        assert (group_masks["action"][alive].sum(-1) == 1).all() and group_masks["action"][~alive].all()
        env.step(env.random_action(generator))


@pytest.mark.parametrize("mode", MODES)
def test_a_snapshot_goes_on_to_the_bit(mode):
    env, other = countdown(mode, restart_every=50), countdown(mode, seed=9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(67):
        env.step(env.random_action(generator))
    saved = env.snapshot()
    assert len(saved["actions/agents"]) == 17
    other.restore(saved)
    for _ in range(20):
        action = env.random_action(generator)
        assert env.masks()["agents"].keys() == other.masks()["agents"].keys()
        for kind, mask in env.masks()["agents"].items():
            assert torch.equal(mask, other.masks()["agents"][kind])
        a, b = env.step(action), other.step(action)
        assert torch.equal(a.observation["agents"], b.observation["agents"]) and torch.equal(a.done, b.done)
        assert torch.equal(a.next_observation["agents"], b.next_observation["agents"])


@pytest.mark.parametrize("mode", MODES)
def test_all_restart_after_so_many_steps(mode):
    env = countdown(mode, max_steps=10, restart_every=10)
    for t in range(1, 31):
        before = env.masks()["agents"].get("alive", torch.ones(3, 1, dtype=torch.bool))[:, 0]
        moved = env.step({"agents": torch.zeros(3, 1, 1, dtype=torch.int64)})
        if t % 10 == 0:  # who waits for a reset has no episode that could be cut off
            assert torch.equal(moved.truncated, before & ~moved.terminated)
            assert (moved.observation["agents"][..., 1] == 0).all() and (moved.observation["agents"][..., 0] >= 2).all()
            assert all(mask.all() for kind, mask in env.masks()["agents"].items() if kind == "alive")


@pytest.mark.parametrize("mode", MODES)
def test_time_limits_truncate(mode):
    env = countdown(mode, max_steps=4, kwargs={"single": Pulls})
    group = env.spec.groups["agents"]
    assert env.spec.max_steps == 4 and group.action.size == 4 and group.observation_size == 5
    ends = []
    for _ in range(15):
        moved = env.step({"agents": torch.full((3, 1, 4), 3.0)})  # beyond the bounds
        assert set(moved.reward["agents"].flatten().tolist()) <= {8.0, 0.0} and not moved.terminated.any()
        ends.append(moved.truncated.all().item())
    period = 5 if mode == "NextStep" else 4
    assert [t for t, end in enumerate(ends, 1) if end] == [4, 4 + period, 4 + 2 * period]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"id": "Nothing-v3"}, "env.id='Nothing-v3': Environment `Nothing` doesn't exist"),
        ({"id": "Pendulum-v1"}, "doesn't have a vector entry point defined; env=gymnasium steps copies of single ones"),
        ({"kwargs": {"speed": 2}}, "env.id='Countdown-v0': .*unexpected keyword argument 'speed'"),
        ({"kwargs": {"mode": None}}, r"metadata\['autoreset_mode'\] is None; NextStep, SameStep, Disabled are allowed"),
        ({"max_steps": 20, "restart_every": 10}, "env.restart_every=10 must be at least env.max_steps=20, or null"),
        ({"device": "cuda"}, "device=cuda: gymnasium's environments run on the CPU"),
    ],
)
def test_mistakes_are_rejected(settings, sentence):
    with pytest.raises(EnvError, match=sentence):
        VectorEnv(**{"id": "Countdown-v0", "num_envs": 2, **settings})


def test_a_mask_that_comes_later_than_the_first_reset_is_refused():
    env = countdown("SameStep", kwargs={"masks": "late"})
    with pytest.raises(EnvError, match="action_mask came with a step; the first reset must bring it too"):
        env.step({"agents": torch.zeros(3, 1, 1, dtype=torch.int64)})


def test_wrong_actions_are_rejected():
    env = countdown("SameStep")
    with pytest.raises(EnvError, match=r"actions must be \{'agents': \[3, 1, 1\], …\}, got shape \(3, 1, 2\)"):
        env.step({"agents": torch.zeros(3, 1, 2)})
    with pytest.raises(EnvError, match="the snapshot is another environment's"):
        env.restore(countdown("SameStep", num_envs=2).snapshot())
