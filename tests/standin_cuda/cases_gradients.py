"""Gradients through the simulator on the stand-in: those of the CPU, by kernels that are launched, and no waits."""

import math
import shutil

import pytest
import torch

from agents.collection.differentiable_collector import DifferentiableCollector
from agents.collection.rollout_buffer import RolloutBuffer
from agents.tasks.short_horizon import ShortHorizon
from envs.base import EnvError
from envs.kernel.backends.cuda.gradient_runtime import CudaGradientKernel
from envs.kernel.verification.recheck import Recheck
from envs.vmas.env import VmasEnv
from envs.vmas.gradients.differentiable_steps import DifferentiableSteps
from envs.vmas.gradients.step_function import StepFunction
from envs.vmas.kernel_stepper import KernelStepper
from marl.checkpoints import checkpoint_file
from marl.engine.updater import Updater
from tests.standin_cuda.runs import TINY, cut_back, resume, same, train, watch, watch_each
from tests.standin_cuda.standin import watched

SCENARIO = "mpe/simple_spread"
RUN = [f"env=vmas/{SCENARIO}", "env.fast=kernel", "trainer.evaluate_every=0"]
GOAL = "world._landmarks.0._state._pos"


@pytest.fixture
def strict(monkeypatch) -> None:
    """Windows and updates are watched, but for states taken over after resets, and comparisons with the simulator."""

    watch_each(monkeypatch, ShortHorizon)
    watch(monkeypatch, DifferentiableCollector, "collect")
    watch(monkeypatch, Updater, "update")
    for owner, name in ((KernelStepper, "_load"), (Recheck, "in_run")):
        watch(monkeypatch, owner, name, on=False)
    watch(monkeypatch, RolloutBuffer, "cut_frames", on=False)  # once per iteration


def played(device: str, scenario: str, free: bool) -> tuple[list[torch.Tensor], int]:
    """Values and gradients of two windows of four steps, in which episodes end, and how many kernels there were.

    free: from the second window on nothing waits.
    """
    env = VmasEnv(scenario, num_envs=6, max_steps=3, fast="kernel", device=device, seed=0)
    steps, found, kernels = DifferentiableSteps(env), [], set()
    assert (type(steps.compilation.kernel(6)) is CudaGradientKernel) == (device == "cuda")
    observation, generator = env.reset(seed=0)[0], torch.Generator().manual_seed(0)
    weights = {
        group: (0.1 * torch.randn(spec.observation_size, 2, generator=generator)).to(device).requires_grad_()
        for group, spec in env.spec.groups.items()
    }
    for window in range(2):
        steps.begin()
        total = torch.zeros((), device=device)
        with watched(device == "cuda" and free and window == 1):
            for _ in range(4):
                step = steps.step({group: torch.tanh(observation[group] @ w) for group, w in weights.items()})
                observation = step.observation
                total = total + sum(step.reward[group].mean() for group in weights)
                total = total + sum(step.next_observation[group].square().mean() for group in weights)
                kernels.add(steps.compilation.binary)
            total.backward()
        observation = {group: seen.detach() for group, seen in observation.items()}
        found += [total.detach().cpu(), *(w.grad.cpu().clone() for w in weights.values())]
    return found, len(kernels)


@pytest.mark.parametrize(("scenario", "kernels"), [(SCENARIO, 1), ("mpe/simple_push", 2)])
def test_gradients_of_windows_are_the_cpus(scenario, kernels) -> None:
    """Resets of the second one draw a goal for the whole batch: the simulator makes the step that ends an episode."""
    (ours, count), (theirs, _) = played("cuda", scenario, kernels == 1), played("cpu", scenario, False)
    assert all(value.abs().max() > 1e-3 for value in theirs) and count == kernels
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_step_as_a_function_has_the_cpus_gradients() -> None:
    found = {}
    for device in ("cuda", "cpu"):
        env = VmasEnv(SCENARIO, num_envs=6, max_steps=None, fast="kernel", device=device, seed=0)
        function = StepFunction(env, [GOAL])
        env.reset(seed=0)
        goal = torch.tensor([0.5, -0.5], device=device, requires_grad=True)
        state, reward = function.put(function.state(), GOAL, goal), 0
        for _ in range(3):
            state, step = function(state, {"agents": torch.full((6, 3, 2), 0.5, device=device)})
            reward = reward + step.reward["agents"].sum()
        reward.backward()
        found[device] = [reward.detach().cpu(), goal.grad.cpu()]
    assert found["cpu"][1].abs().max() > 1e-3
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-4, atol=1e-5)


def test_who_moved_the_environment_is_told_in_a_later_window() -> None:
    env = VmasEnv(SCENARIO, num_envs=6, fast="kernel", device="cuda", seed=0)
    steps, action = DifferentiableSteps(env), {"agents": torch.zeros(6, 3, 2, device="cuda")}
    steps.begin()
    steps.step(action)
    env.reset(seed=1)
    steps.step(action)
    steps.begin()  # asks
    with pytest.raises(EnvError, match="stepped by others since an earlier window's last step"):
        steps.begin()
    steps.begin()
    steps.step(action)


@pytest.mark.parametrize("name", ["shac", "apg"])
def test_an_algorithm_learns_what_it_learns_on_a_cpu_and_resumes_bitwise(tmp_path, strict, name) -> None:
    whole, half, weights = tmp_path / "whole", tmp_path / "half", {}
    for device, folder in (("cuda", whole), ("cpu", tmp_path / "cpu")):
        _, task, summary = train(folder, f"algo={name}", *RUN, f"device={device}", "trainer.keep_every=2", sizes=SIZES)
        assert summary["frames"] == 48 and math.isfinite(summary["final"]["episode_return"]["mean"])
        weights[device] = [p.detach().cpu() for p in task.loss.parameters()]
    torch.testing.assert_close(weights["cuda"], weights["cpu"], rtol=1e-3, atol=1e-5)
    resume(cut_back(shutil.copytree(whole, half), 2))
    one, other = (checkpoint_file.load(folder / "checkpoints" / "last.pt", "cuda") for folder in (whole, half))
    parts = ("loss", "optimizer", "schedule", "processes")
    apart = [key for part in parts for key in same(one[part], other[part], part)]
    assert one["iteration"] == other["iteration"] == 3 and not [key for key in apart if "seconds" not in key]


SIZES = [size for size in TINY if not size.startswith(("env.fast", "trainer.evaluate_every"))]
