"""The GPU's runtime on a machine without one: its launches run on the CPU, everything above them is what a GPU gets."""

import pytest
import torch

import envs.kernel.compile as making
from envs.base import ActionError
from envs.kernel.backends.cuda.driver import cuda_driver, using
from envs.kernel.backends.cuda.emulation import EmulatedDriver
from envs.kernel.backends.cuda.runtime import ATTENTION, CudaStep
from envs.kernel.targets import CpuTarget, CudaTarget, target_of
from envs.vmas.env import VmasEnv
from envs.vmas.kernel_stepper import KernelStepper
from tests.envs.kernel.backends.rollouts import bound, played

E = 30


@pytest.fixture
def emulated(monkeypatch):
    """Kernels are made for a GPU, and their launches run on the CPU."""
    monkeypatch.setattr(making, "target_of", lambda device: CudaTarget(device))
    driver = EmulatedDriver()
    with using(driver):
        yield driver


def test_a_gpu_gets_cuda_and_everything_else_the_cpu_s():
    assert isinstance(target_of(torch.device("cpu")), CpuTarget)
    target = target_of(torch.device("cuda", 1))
    assert isinstance(target, CudaTarget) and target.device.index == 1


def test_a_cpu_prepares_nothing():
    env = VmasEnv("debug/goal", num_envs=E, fast="kernel")
    env.prepare(4)
    assert type(env.stepper) is KernelStepper and env.device_state() is None and env.why_not_captured == ""
    assert env.stepper.kernel.pools == 1


@pytest.mark.parametrize(
    ("scenario", "kwargs"),
    [
        ("balance", {}),
        ("debug/line_trajectory", {}),  # draws in its step
        ("tests.envs.kernel.backends.grid.Grid", {}),  # a table
        ("mpe/simple", {"continuous_actions": False}),
    ],
)
def test_the_whole_environment_steps_as_on_the_cpu(emulated, monkeypatch, scenario, kwargs):
    """Same resets, same draws, same pool: the two runtimes differ by the rounding of a function here and there."""
    settings = {"num_envs": E, "max_steps": 7, "pool_every": 5, "fast": "kernel", "seed": 3, **kwargs}
    gpu = VmasEnv(scenario, **settings)
    assert isinstance(gpu.stepper.kernel, CudaStep) and emulated.launches > 0
    monkeypatch.setattr(making, "target_of", target_of)
    cpu = VmasEnv(scenario, **settings)
    assert not isinstance(cpu.stepper.kernel, CudaStep)
    for theirs, ours in zip(played(cpu, 12), played(gpu, 12), strict=True):
        assert theirs.keys() == ours.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-4)


def test_buffers_of_a_rollout_hold_what_steps_return(emulated):
    env, other = (VmasEnv("debug/goal", num_envs=E, max_steps=4, fast="kernel", seed=1) for _ in range(2))
    env.reset(seed=5), other.reset(seed=5)
    buffers, actions = bound(env, 8), [other.random_action(torch.Generator().manual_seed(t)) for t in range(8)]
    for t, action in enumerate(actions):
        env.step_into(t, action)
        step = other.step(action)
        assert torch.equal(buffers["observation"][t], step.observation["agents"])
        assert torch.equal(buffers["reward"][t], step.reward["agents"])
        assert torch.equal(buffers["truncated"][t], step.truncated)
    assert buffers["truncated"].sum() == 2 * E


def test_pools_lie_side_by_side(emulated):
    """A step restarts from the pool in use, or from the row of any pool that lies in memory for it."""
    env = VmasEnv("debug/goal", num_envs=E, max_steps=2, pool_every=100, fast="kernel", seed=2)
    env.reset(seed=4)
    action, kernel = env.random_action(), env.stepper.ready()
    kernel.make_room(3)
    env.stepper.load()
    env.stepper.ready()
    fields = []
    for number in range(3):
        assert (kernel.slot, kernel.row(5)) == (number, number * kernel.pool_size + 5)
        fields.append(kernel.pool[kernel.row(0) :][: kernel.pool_size].T.clone())
        kernel.next_pool()
        env.refresh_pool()
        env.stepper.load()
        env.stepper.ready()
    assert kernel.slot == 0 and not torch.equal(fields[0], fields[1])
    first = kernel.pool[: kernel.pool_size].T  # loaded anew, in the place of the oldest
    rows = (torch.arange(E) + 7) % kernel.pool_size
    for chosen, expected in ((1, fields[1]), (2, fields[2]), (0, first)):
        kernel.bind_shifts(torch.tensor([chosen * kernel.pool_size + 7]))
        for _ in range(2):  # all end with the second
            kernel.point(("action", "agents"), action["agents"])
            kernel.step(0)
        assert torch.equal(kernel.state[:, :E], expected[:, rows])
    kernel.bind_shifts(None)
    for _ in range(2):
        kernel.step(0, shift=7)
    assert torch.equal(kernel.state[:, :E], first[:, rows])


def test_a_snapshot_repeats_the_steps_to_the_last_bit(emulated):
    env = VmasEnv("debug/line_trajectory", num_envs=E, max_steps=6, pool_every=4, fast="kernel", seed=9)
    played(env, 3)
    saved = env.snapshot()
    actions = [env.random_action() for _ in range(9)]
    first = [env.step(action).observation["agents"].clone() for action in actions]
    env.restore(saved)
    assert all(
        torch.equal(env.step(action).observation["agents"], value) for action, value in zip(actions, first, strict=True)
    )


def test_a_nan_is_told_without_waiting_for_it(emulated):
    env = VmasEnv("debug/goal", num_envs=E, fast="kernel")
    good = env.random_action()
    bad = {name: torch.full_like(value, torch.nan) for name, value in good.items()}
    env.step(bad)  # nobody looks yet
    with pytest.raises(ActionError, match="not a number"):
        for _ in range(2 * ATTENTION):
            env.step(good)
    env.reset(seed=0)
    for _ in range(2 * ATTENTION):
        env.step(good)


@pytest.mark.parametrize("choice", [-1, 9])
def test_what_is_no_choice_is_reported(emulated, choice):
    env = VmasEnv("simple_tag", num_envs=E, fast="kernel", continuous_actions=False)
    bad = env.random_action()
    next(iter(bad.values()))[-1, -1] = choice
    env.step(bad)
    env.figures()  # asks
    with pytest.raises(ActionError, match="outside of the allowed choices"):
        env.figures()


def test_an_iteration_s_end_asks_for_it(emulated):
    env = VmasEnv("debug/goal", num_envs=E, fast="kernel")
    env.step({name: torch.full_like(value, torch.nan) for name, value in env.random_action().items()})
    env.figures()  # asks
    with pytest.raises(ActionError, match="not a number"):
        env.figures()


def test_tensors_of_another_device_are_refused(emulated):
    kernel = VmasEnv("debug/goal", num_envs=E, fast="kernel").stepper.kernel
    away = torch.empty(E, 1, 2, device="meta")
    with pytest.raises(ValueError, match="lies on meta, and the environment on cpu"):
        kernel.point(("action", "agents"), away)
    with pytest.raises(ValueError, match="lies on meta"):
        kernel.bind({("terminated",): torch.empty(E, dtype=torch.bool, device="meta")})


def test_the_driver_in_use_is_put_back():
    before = cuda_driver()
    with using(EmulatedDriver()) as _:
        assert cuda_driver() is not before
    assert cuda_driver() is before
