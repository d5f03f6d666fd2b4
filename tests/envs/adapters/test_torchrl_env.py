"""TorchRL environments behind the contract: steps, ends, true final observations, snapshots, processes, refusals."""

import pytest
import torch
from torchrl.envs import GymEnv, SerialEnv

from envs.adapters.torchrl_env import FromTorchRL
from envs.base import ActionError, EnvError
from envs.vmas.env import VmasEnv
from marl.core.seeding import spread

CASES = "tests.envs.torchrl_cases"
GYM = "torchrl.envs.GymEnv"
KINDS = {
    "one-hot": (GYM, {"kwargs": {"env_name": "CartPole-v1"}}),
    "bounded": (GYM, {"kwargs": {"env_name": "Pendulum-v1"}}),
    "vectorised": ("torchrl.envs.VmasEnv", {"kwargs": {"scenario": "simple_tag"}, "vectorised": "num_envs"}),
    "nested": ("torchrl.testing.mocking_classes.NestedCountingEnv", {}),
    "binary": ("torchrl.testing.mocking_classes.CountingEnv", {}),
    "masked": (f"{CASES}.Masked", {}),
    "pairs": (f"{CASES}.Pairs", {}),
}


def make(kind, num_envs=3, **settings):
    env, kind_settings = KINDS[kind]
    return FromTorchRL(env, num_envs=num_envs, **{"max_steps": 12, **kind_settings, **settings})


def random_steps(env, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [env.step(env.random_action(generator)) for _ in range(count)]


def same(a, b):
    fields = [(getattr(a, f), getattr(b, f)) for f in ("observation", "next_observation", "reward")]
    tensors = [(one[name], two[name]) for one, two in fields for name in one]
    return all(torch.equal(x, y) for x, y in [*tensors, (a.terminated, b.terminated), (a.truncated, b.truncated)])


def test_steps_are_torchrls_own():
    env = make("one-hot", seed=3)
    raw = SerialEnv(3, lambda: GymEnv("CartPole-v1"))
    raw.set_seed(spread(3, 1) % 2**31)
    current = raw.reset()
    assert torch.equal(env.reset(3)[0]["agents"].squeeze(1), current["observation"])
    for _ in range(7):
        current["action"] = torch.tensor([[0, 1]] * 3)
        current, after = raw.step_and_maybe_reset(current)
        moved = env.step({"agents": torch.ones(3, 1, 1, dtype=torch.int64)})
        assert torch.equal(moved.next_observation["agents"].squeeze(1), current["next", "observation"])
        assert torch.equal(moved.reward["agents"], current["next", "reward"])
        assert torch.equal(moved.terminated, current["next", "terminated"].squeeze(-1))
        current = after


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_holds(kind):
    env = make(kind)
    steps = random_steps(env, 40)
    assert any(s.done.any() for s in steps)
    for moved in steps:
        assert not (moved.terminated & moved.truncated).any()
        for name, group in env.spec.groups.items():
            shape = (3, group.n_agents, group.observation_size)
            assert moved.observation[name].shape == moved.next_observation[name].shape == shape
            assert moved.observation[name].dtype == torch.float32 and moved.reward[name].shape == shape[:2]
            here = (moved.observation[name] == moved.next_observation[name]).flatten(1).all(-1)
            assert here[~moved.done].all() and not here[moved.done].any()  # where it ended, a new beginning


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_goes_on_to_the_bit_and_leaves_the_callers_random_numbers_alone(kind):
    other, env = make(kind, seed=9), make(kind)  # VMAS in TorchRL has one hidden stream for all: the last one seeds it
    random_steps(env, 22)
    before = torch.get_rng_state()
    saved = env.snapshot()
    expected = random_steps(env, 20, seed=4)
    other.restore(saved)
    restored = random_steps(other, 20, seed=4)
    assert all(same(a, b) for a, b in zip(expected, restored, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_time_limits_truncate_and_ends_terminate():
    steps = random_steps(make("bounded", max_steps=7), 21)
    ends = torch.stack([s.truncated for s in steps])
    assert ends[6::7].all() and ends.sum() == 9 and not any(s.terminated.any() for s in steps)
    steps = random_steps(make("masked", max_steps=9), 20)  # its own end, after five
    assert torch.stack([s.terminated for s in steps])[4::5].all() and not any(s.truncated.any() for s in steps)
    assert (steps[4].next_observation["agents"][..., 1:] == 5).all()
    assert (steps[4].observation["agents"][..., 1:] == 0).all()


def test_masks_are_read_and_kept_by_random_play():
    env = make("masked")
    group = env.spec.groups["agents"]
    assert group.masks == ("action",) and group.observation_size == 4 and group.agents == ("agents_0", "agents_1")
    mask = env.masks()["agents"]["action"]
    assert mask.shape == (3, 2, 4) and mask.any(-1).all() and not mask.all()
    moved = random_steps(env, 1)[0]  # the environment checks every choice
    assert torch.equal(moved.reward["agents"][:, 0], moved.reward["agents"][:, 1])  # the team's


def test_two_choices_at_once():
    env = make("pairs")
    assert env.spec.groups["agents"].action.nvec == (2, 3)
    moved = env.step({"agents": torch.tensor([[[1, 2]], [[0, 1]], [[1, 0]]])})
    assert moved.reward["agents"].flatten().tolist() == [12.0, 1.0, 10.0]


def test_all_restart_after_so_many_steps():
    env = make("bounded", max_steps=8, restart_every=20)
    steps = random_steps(env, 45)
    assert [t for t, s in enumerate(steps) if s.truncated.all()] == [7, 15, 19, 27, 35, 39]
    assert len(env.snapshot()["actions/agents"]) == 5
    starts = torch.cat([steps[t].observation["agents"].flatten(1) for t in (19, 39)])
    assert len(starts.unique(dim=0)) == 6


def test_seeds_repeat_and_resets_do_not():
    env = make("one-hot")
    one, two = env.reset(5)[0]["agents"], env.reset()[0]["agents"]
    assert not torch.equal(one, two) and torch.equal(one, env.reset(5)[0]["agents"])


def test_there_and_back_again():
    ours = VmasEnv("mpe/simple_tag", 4, max_steps=9, fast="off", global_state=True)
    back = FromTorchRL(f"{CASES}.ours", num_envs=4, max_steps=9, vectorised="num_envs", state="state")
    assert back.spec.state_size == ours.spec.state_size
    observation, state = back.reset(2)
    ours.reset(spread(2, 1) % 2**31)
    expected, wanted_state = ours.reset()  # TorchRL resets after it has seeded
    assert torch.equal(state, wanted_state) and all(torch.equal(observation[n], expected[n]) for n in expected)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        action = ours.random_action(generator)
        a, b = ours.step(action), back.step(action)
        assert torch.equal(a.next_state, b.next_state) and all(torch.equal(a.reward[n], b.reward[n]) for n in expected)
        assert torch.equal(a.truncated, b.truncated) and torch.equal(a.state, b.state)
        assert all(torch.equal(a.next_observation[n], b.next_observation[n]) for n in expected)


def test_processes_do_what_one_does():
    one, several = make("one-hot", 4), make("one-hot", 4, workers=3)  # two of two each
    assert list(several.env.batch_size) == [2, 2]
    try:
        for a, b in zip(random_steps(one, 15), random_steps(several, 15), strict=True):
            assert a.reward["agents"].shape == b.reward["agents"].shape
            assert b.next_observation["agents"].isfinite().all()
        saved, again = several.snapshot(), random_steps(several, 6, seed=1)
        several.restore(saved)
        assert all(same(a, b) for a, b in zip(again, random_steps(several, 6, seed=1), strict=True))
    finally:
        several.close()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"env": "torchrl.envs.NoEnv"}, "env.env=torchrl.envs.NoEnv: torchrl.envs has no 'NoEnv'"),
        ({"env": "no.where"}, "env.env=no.where: no module 'no'"),
        ({"env": GYM, "kwargs": {"nam": "x"}}, r"env.env='torchrl.envs.GymEnv': refuses env.kwargs=\{'nam': 'x'\}"),
        ({"env": f"{CASES}.nothing"}, "nothing: must be a subclass of .*EnvBase, or a function that says it makes one"),
        ({"env": f"{CASES}.pretends"}, "makes a list, no torchrl.envs.EnvBase"),
        ({"env": f"{CASES}.Endless"}, "its actions are Unbounded.*Bounded, Unbounded, Categorical, .* are allowed"),
        ({"env": f"{CASES}.ours", "kwargs": {"num_envs": 3}}, r"is vectorised already, \[3\]: name the argument"),
        ({"env": f"{CASES}.ours", "vectorised": "seed", "kwargs": {"num_envs": 3}}, r"env.vectorised=seed makes \[3\]"),
        ({"env": f"{CASES}.Masked", "state": "place"}, "env.state=place: there is no such key; there are"),
        ({"env": f"{CASES}.Masked", "restart_every": 5, "max_steps": 6}, "env.restart_every=5 must be at least env"),
    ],
)
def test_mistakes_are_rejected(settings, sentence):
    with pytest.raises(EnvError, match=sentence):
        FromTorchRL(**{"num_envs": 2, "max_steps": 5, **settings})


def test_wrong_actions_and_snapshots_are_rejected():
    env = make("bounded")
    with pytest.raises(EnvError, match=r"actions must be \{'agents': \[3, 1, 1\], …\}, got shape \(3, 1, 2\)"):
        env.step({"agents": torch.zeros(3, 1, 2)})
    with pytest.raises(EnvError, match="not a number"):
        env.step({"agents": torch.full((3, 1, 1), torch.nan)})
    with pytest.raises(ActionError, match="outside of the allowed choices"):
        make("one-hot").step({"agents": torch.full((3, 1, 1), 99)})
    with pytest.raises(EnvError, match="the snapshot is another environment's"):
        env.restore(make("one-hot", 2).snapshot())
