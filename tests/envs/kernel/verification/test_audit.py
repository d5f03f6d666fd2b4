"""What the watch over a step counts as the step's own."""

import cProfile
import gc
import pstats
import sys

import pytest

from envs.vmas.env import VmasEnv
from tests.fixtures.kernels import kernels_made_anew


class Littered:
    """Garbage in a cycle, whose finalizer opens a file: what an earlier part of the program leaves behind."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        open("/dev/null").close()


@pytest.fixture
def littering():
    """Collects garbage often, and leaves some more each time."""
    usual = gc.get_threshold()
    collections = []

    def leave(phase: str, info: dict) -> None:
        collections.append(phase)
        Littered()

    gc.callbacks.append(leave)
    gc.set_threshold(50, 1, 1)
    yield collections
    gc.set_threshold(*usual)
    gc.callbacks.remove(leave)


def test_finalizers_of_other_objects_are_no_part_of_a_step(littering, tmp_path, monkeypatch):
    """A scenario is refused for what it does, not for what is collected meanwhile."""
    with kernels_made_anew(tmp_path):
        monkeypatch.setenv("MARL_KERNEL_CACHE", str(tmp_path))
        VmasEnv("balance", num_envs=4, fast="kernel")  # raises where there is no kernel
    assert len(littering) > 10 and gc.isenabled()


def test_a_profiled_run_goes_on_being_profiled():
    profiler = cProfile.Profile()
    with profiler:
        env = VmasEnv("balance", num_envs=4)
        env.step(env.random_action())
    assert env.path == "kernel"
    assert any(function == "random_action" for _, _, function in pstats.Stats(profiler).stats)


def test_a_profiling_function_is_put_back():
    calls = []
    usual = sys.getprofile()

    def note(frame, event, arg):
        calls.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        VmasEnv("balance", num_envs=4)
        assert sys.getprofile() is note and calls
    finally:
        sys.setprofile(usual)
