"""What a scenario is told of the run's progress: by kernel and simulator alike, in the pool, in snapshots."""

import shutil

import pytest
import torch

from envs.vmas.env import VmasEnv

SCENARIO = "tests.fixtures.approach.Approach"
E = 6
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def make(fast: str) -> VmasEnv:
    return VmasEnv(SCENARIO, num_envs=E, max_steps=5, pool_every=4, fast=fast, seed=3)


def play(env: VmasEnv, steps: int = 7) -> list[dict]:
    told = []
    for t in range(steps):
        action = {"agents": torch.linspace(-1, 1, E * 2).view(E, 1, 2) * (1 if t % 2 else -0.5)}
        step = env.step(action)
        told.append({"seen": step.observation["agents"], "reward": step.reward["agents"], "done": step.done})
    return told


def assert_close(one: list[dict], other: list[dict]) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a["done"], b["done"])
        torch.testing.assert_close(a["seen"], b["seen"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a["reward"], b["reward"], rtol=1e-5, atol=1e-5)


@needs_compiler
def test_the_kernel_reads_it_as_the_simulator_does_and_is_not_made_again() -> None:
    kernel, eager = make("kernel"), make("off")
    made = kernel.stepper.compilation.binary
    for progress in (1.0, 0.0, 0.25, 0.25):
        for env in (kernel, eager):
            env.set_progress(progress)
        assert_close(play(kernel), play(eager))
        for env in (kernel, eager):
            assert env.simulator.scenario.progress.tolist() == [progress] * E
    assert kernel.path == "kernel" and kernel.stepper.compilation.binary == made


def test_it_is_1_until_it_is_told_and_new_episodes_begin_with_what_is_told() -> None:
    env = make("off")
    assert play(env, 1)[0]["seen"][:, 0, 4].tolist() == [1.0] * E
    env.set_progress(0.5)
    for told in play(env, 9):
        assert told["seen"][:, 0, 4].tolist() == [0.5] * E
    observation, _ = env.reset(0)
    distance = observation["agents"][:, 0, :2].norm(dim=-1)
    torch.testing.assert_close(distance, torch.full((E,), 0.6))  # reach * (0.1 + progress)


@pytest.mark.parametrize("fast", ["off", pytest.param("kernel", marks=needs_compiler)])
def test_a_snapshot_holds_it(fast: str) -> None:
    env, other = make(fast), make(fast)
    env.set_progress(0.125)
    play(env, 3)
    saved = env.snapshot()
    expected = play(env)
    other.restore(saved)
    for again in (play(other), env.restore(saved) or play(env)):
        for a, b in zip(again, expected, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)
    other.restore(saved)
    other.set_progress(0.125)  # no news: nothing is drawn
    now = other.snapshot()
    assert all(torch.equal(now[key], value) for key, value in saved.items() if value.dtype != torch.uint8)
    assert not torch.equal(now["pool/scenario.progress"], torch.ones(65))
    assert any(key.startswith("pool_random/") for key in saved)
