"""Snapshots repeat bitwise, and no environment shares its randomness with another."""

import io
import random
from functools import partial

import numpy as np
import pytest
import torch

from envs.base import EnvError
from envs.rng import Stream
from envs.vmas.env import VmasEnv as AnyVmasEnv
from marl.core.seeding import spread

VmasEnv = partial(AnyVmasEnv, fast="off")  # the eager path; tests/envs/kernel holds the kernels to it


def play(env: AnyVmasEnv, steps: int, seed: int = 0) -> list[torch.Tensor]:
    generator, out = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        moved = env.step(env.random_action(generator))
        for group in env.spec.groups:
            out += [moved.observation[group], moved.next_observation[group], moved.reward[group]]
            out += moved.info[group].values()
        out += [moved.terminated, moved.truncated]
        out += [] if moved.state is None else [moved.state, moved.next_state]
    return out


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def global_states() -> tuple:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


CASES = [
    {"scenario": "balance", "global_state": True},
    {"scenario": "navigation"},
    {"scenario": "simple_tag"},
    {"scenario": "simple_speaker_listener"},
    {"scenario": "debug/het_mass"},
    {"scenario": "dropout"},
    {"scenario": "debug/asym_joint"},
    {"scenario": "balance", "continuous_actions": False},
    {"scenario": "football", "scenario_kwargs": {"n_blue_agents": 2, "n_red_agents": 2}},
    {"scenario": "joint_passage", "scenario_kwargs": {"n_passages": 9}},
    {"scenario": "road_traffic", "scenario_kwargs": {"n_agents": 3}},
]
SLOW = ("football", "joint_passage", "road_traffic")


@pytest.mark.parametrize("settings", CASES, ids=lambda s: ",".join(str(v) for v in s.values()))
def test_restoring_repeats_the_same_bits(settings):
    make = {"num_envs": 4, "max_steps": 9, "pool_every": 7, "pool_size": 6, **settings}
    env = VmasEnv(**make)
    env.reset(3)
    play(env, 5)
    file = io.BytesIO()
    torch.save(env.snapshot(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    steps = 10 if settings["scenario"] in SLOW else 20  # past a time limit and a new pool, or two of each
    first = play(env, steps, seed=1)
    env.restore(saved)
    assert same(first, play(env, steps, seed=1))
    other = VmasEnv(**{**make, "seed": 77})  # another process would build the environment again
    other.restore(saved)
    assert same(first, play(other, steps, seed=1))
    env.restore(saved)
    env.step(env.random_action())
    assert not same(first[:3], play(env, 1, seed=1)[:3])


def test_snapshot_right_after_reset_and_of_itself():
    env = VmasEnv("navigation", num_envs=4, max_steps=5)
    env.reset(0)
    saved = env.snapshot()
    env.restore(saved)
    again = env.snapshot()
    assert saved.keys() == again.keys() and all(torch.equal(saved[k], again[k]) for k in saved)
    first = play(env, 12)
    assert all(torch.equal(saved[k], again[k]) for k in saved)  # cloned: steps do not reach into it
    env.restore(saved)
    assert same(first, play(env, 12))


def test_snapshot_continues_where_the_scenario_terminates(own_scenario):
    env = VmasEnv(own_scenario, num_envs=5, max_steps=None, pool_every=6)
    env.reset(0)
    play(env, 4)
    saved = env.snapshot()
    first = play(env, 20)
    env.restore(saved)
    assert same(first, play(env, 20))


def test_a_network_that_learns_in_the_scenario_goes_on_learning():
    a, b = (VmasEnv("tests.envs.kernel.zoo.code.networks.Learning", num_envs=5, max_steps=20, seed=0) for _ in range(2))
    play(a, 30)
    b.restore(a.snapshot())
    assert all(isinstance(weight, torch.nn.Parameter) for weight in b.simulator.scenario.net._parameters.values())
    assert same(play(a, 30, seed=1), play(b, 30, seed=1))


def test_a_snapshot_of_another_environment_is_refused():
    balance = VmasEnv("balance", num_envs=4)
    for other in (VmasEnv("balance", num_envs=5), VmasEnv("navigation", num_envs=4)):
        with pytest.raises(EnvError, match="another environment"):
            balance.restore(other.snapshot())
    with pytest.raises(EnvError, match="not one of a VMAS environment"):
        balance.restore({"weights": torch.zeros(1)})


def test_seeds_decide_and_repeat():
    env = VmasEnv("balance", num_envs=4, max_steps=6, seed=5)
    built = play(env, 15)
    env.reset(5)
    assert same(built, play(env, 15))
    assert same(built, play(VmasEnv("balance", num_envs=4, max_steps=6, seed=5), 15))
    assert not same(built, play(VmasEnv("balance", num_envs=4, max_steps=6, seed=6), 15))
    env.reset(5)
    first = env.reset()[0]["agents"]
    assert not torch.equal(first, env.reset()[0]["agents"])  # without a seed the stream goes on


def test_reset_with_a_seed_is_vmas_own():
    from vmas import make_env

    raw = make_env("balance", num_envs=4, seed=0)
    theirs = torch.stack(raw.reset(seed=11), 1)
    assert torch.equal(VmasEnv("balance", num_envs=4).reset(11)[0]["agents"], theirs)


@pytest.mark.parametrize(
    "scenario, fast",
    [
        ("simple_tag", "off"),
        ("simple_tag", "auto"),
        ("debug/het_mass", "off"),
        ("debug/asym_joint", "off"),
        ("debug/asym_joint", "auto"),
    ],
)
def test_global_generators_are_left_alone_and_ignored(scenario, fast):
    from vmas.simulator.environment import Environment

    shared = [Environment.vmas_random_state[0].clone(), Environment.vmas_random_state[2]]
    before = global_states()
    env = VmasEnv(scenario, num_envs=3, max_steps=4, fast=fast)
    env.reset(0)
    first = play(env, 10)
    assert global_states() == before
    assert torch.equal(shared[0], Environment.vmas_random_state[0]) and shared[1] == Environment.vmas_random_state[2]
    torch.rand(7), np.random.rand(7), random.random()
    env.reset(0)
    assert same(first, play(env, 10))


def test_a_second_environment_disturbs_nothing():
    def run(disturb: bool) -> list[torch.Tensor]:
        env, out = VmasEnv("debug/asym_joint", num_envs=3, max_steps=4), []
        env.reset(0)
        for i in range(4):
            out += play(env, 3, seed=i)
            if disturb:
                evaluation = VmasEnv("debug/asym_joint", num_envs=8, max_steps=4, seed=1)
                play(evaluation, 3)
                evaluation.reset()
        return out

    assert same(run(False), run(True))


def test_a_stream_draws_as_the_seeded_generators_do():
    stream = Stream(42)
    with stream:
        ours = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.gauss(0, 1)
    saved = stream.state_dict()
    with stream:
        more = torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1)
    global_states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.manual_seed(42), np.random.seed(42), random.seed(42)
    theirs = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.gauss(0, 1)
    torch.set_rng_state(global_states[0]), np.random.set_state(global_states[1]), random.setstate(global_states[2])
    assert ours == theirs
    fresh = Stream(0)
    fresh.load_state_dict(saved)
    with fresh:
        assert more == (torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1))


def test_an_error_inside_a_stream_gives_the_generators_back():
    before, stream = global_states(), Stream(0)
    with pytest.raises(KeyError), stream:
        torch.rand(1)
        raise KeyError
    assert global_states() == before


def test_spread_seeds_differ():
    assert len({spread(seed, purpose) for seed in range(100) for purpose in range(5)}) == 500
