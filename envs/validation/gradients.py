"""The second table of docs/kernels.md: which scenarios have gradients, how right they are, and what they cost.

Usage:

    python -m envs.validation.gradients [scenario …] [--no-timing] [--page docs/kernels.md] [--json gradients.json]
"""

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from envs.base import EnvError
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.compile_gradient import CompiledGradient
from envs.kernel.ir.gradient import TABLE
from envs.validation.kernel_coverage import command, settings_of
from envs.vmas.env import VmasEnv
from envs.vmas.gradients.differentiable_steps import DifferentiableSteps

WARM, PLAYED = 3, 10  # rounds before the clock counts, steps before gradients are looked at
BUDGET = 20.0  # seconds of one scenario's race: where VMAS's step takes seconds, there are fewer rounds, two at least
Slots = dict[str, Tensor]


def measure(scenario: str, num_envs: int, rounds: int = 9, timed: bool = True) -> dict[str, Any]:
    """One row: what was built, errors against differences and against VMAS's own autograd, seconds in turn."""
    start = time.perf_counter()
    row: dict[str, Any] = {"scenario": scenario, "why": ""}
    try:
        env = VmasEnv(**settings_of(scenario), num_envs=num_envs)
        steps = DifferentiableSteps(env)
    except EnvError as error:
        return row | {"why": str(error)}
    env.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(PLAYED):
        env.step(env.random_action(generator))
    action = {g: a.contiguous() for g, a in env.random_action(generator).items()}
    row |= {"total": time.perf_counter() - start, **steps.compilation.facts}
    row["step_operations"] = env.stepper.compilation.facts["operations"]
    row |= against_autograd(env, steps.compilation, action)
    return row | (race(env, steps.compilation, action, rounds) if timed else {})


def _incoming(kernel: GradientKernel, generator: torch.Generator) -> dict[tuple, Tensor]:
    """Random gradients of what a step gives; of the state none."""
    return {
        ("gradient", *key): torch.randn(kernel.num_envs, n, generator=generator) for key, n in kernel.places.outputs
    }


def _given(env: VmasEnv, kernel: GradientKernel, step: Any, action: dict[str, Tensor]) -> dict[tuple, Tensor]:
    """What a gradient kernel is given at the state that lies in a step's kernel."""
    given = {
        ("state",): step.state.clone(),
        ("noise",): step.random.clone(),
        ("gradient", "state"): torch.zeros_like(step.state),
    }
    given |= {("action", g): a for g, a in action.items()}
    return given | {
        ("table", p): torch.zeros(env.num_envs, n) if p.startswith(TABLE) else step.tables[p].clone()
        for p, n, _ in kernel.places.tables
    }


def against_autograd(env: VmasEnv, compilation: CompiledGradient, action: dict[str, Tensor]) -> dict[str, Any]:
    """Relative differences from the gradients of VMAS's own step (`grad_enabled`), at the environment's state.

    "autograd": median, 95 % quantile and largest of one number per environment: how far its gradients of state and
    actions are from torch's, by their norm (at least 1); or one sentence why there are none.
    """
    step, pool = env.stepper.compilation.step(env.num_envs), env.world.pool
    simulator = env.simulator
    simulator.grad_enabled = True
    step.load_state(lambda path: pool.main.tensors[path].value)
    if step.noise:
        return {"autograd": "the step draws random numbers"}
    kernel, generator = compilation.kernel(env.num_envs), torch.Generator().manual_seed(1)
    incoming, given = _incoming(kernel, generator), _given(env, kernel, step, action)
    actions = kernel(given | incoming)
    with pool.preserved():
        try:
            theirs = _autograd(env, set(step.columns), action, incoming)
        except Exception as error:  # a scenario may do anything that autograd refuses
            return {"autograd": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}
    off, size = torch.zeros(env.num_envs), torch.zeros(env.num_envs)
    for name, expected in theirs.items():
        ours = actions[name[1]] if name[0] == "action" else None
        if ours is None:
            rows, elements = step.columns[name[1]]
            ours, expected = given["gradient", "state"][rows, : env.num_envs].T, expected[:, elements]
        difference, expected = ours - expected.reshape(ours.shape), expected.reshape(ours.shape)
        off, size = off + difference.square().sum(1), size + expected.square().sum(1)
    error = (off / size.clamp(min=1)).sqrt()
    nan = int(error.isnan().sum())
    error = error[~error.isnan()]
    if not len(error):
        return {"autograd": "its own gradients are nan"}
    return {"autograd": [error.median().item(), error.quantile(0.95).item(), error.max().item()], "autograd_nan": nan}


def _autograd(
    env: VmasEnv, paths: set[str], action: dict[str, Tensor], incoming: dict[tuple, Tensor]
) -> dict[tuple, Tensor]:
    """{("action", group) or ("state", path): gradient [E, n]} by torch, through the simulator's own step."""
    world, leaves = env.world, {}
    for path in sorted(paths):
        slot = world.pool.main.tensors[path]
        if slot.value.is_floating_point() and world.pool.axes[path] == 0:
            leaves["state", path] = leaf = slot.value.detach().clone().requires_grad_()
            slot.write(leaf.clone())
    handed = {g: a.clone().requires_grad_() for g, a in action.items()}
    leaves |= {("action", g): a for g, a in handed.items()}
    with world.pool.stream:
        observations, rewards, *_ = world.simulator.step(world.split_actions({g: a * 1 for g, a in handed.items()}))
    gives = {("gradient", "observation", g): v for g, v in world.observe(world.simulator, observations).items()}
    gives |= {("gradient", "reward", name): group.reward(rewards) for name, group in world.groups.items()}
    total = sum(
        (gives[name].reshape(env.num_envs, -1) * weight).sum()
        for name, weight in incoming.items()
        if gives[name].requires_grad
    )
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {
        name: (torch.zeros_like(leaf) if g is None else g).reshape(env.num_envs, -1)
        for (name, leaf), g in zip(leaves.items(), found, strict=True)
    }


def race(env: VmasEnv, compilation: CompiledGradient, action: dict[str, Tensor], rounds: int) -> dict[str, Any]:
    """Medians, in turn and on one thread: µs of the step's kernel, of the gradients', of VMAS's step and backward."""
    step, kernel = env.stepper.compilation.step(env.num_envs), compilation.kernel(env.num_envs)
    pool = env.world.pool
    simulator = env.simulator
    simulator.grad_enabled = True
    step.load_state(lambda path: pool.main.tensors[path].value)
    outputs = {key: torch.empty(env.num_envs, n) for key, n in step.places.outputs}
    ended = {(name,): torch.empty(env.num_envs, dtype=torch.bool) for name in ("terminated", "truncated")}
    step.bind(outputs | ended | {("action", g): a for g, a in action.items()})
    given = _given(env, kernel, step, action) | _incoming(kernel, torch.Generator().manual_seed(1))
    before, gradient, laps = step.state.clone(), given["gradient", "state"].clone(), []
    until = time.perf_counter() + BUDGET
    while len(laps) < WARM + rounds and (len(laps) < 3 or time.perf_counter() < until):
        lap = ([], [], [])
        for _ in range(20):
            step.state.copy_(before)
            given["gradient", "state"].copy_(gradient)
            lap[0].append(_seconds(step.step))
            lap[1].append(_seconds(lambda: kernel(given)))
        lap[2].append(_vmas_seconds(env, action))
        laps.append(lap)
    counted = laps[min(WARM, len(laps) - 2) :]
    found = {}
    for i, name in enumerate(("step_us", "gradient_us", "vmas_us")):
        times = [seconds for lap in counted for seconds in lap[i]]
        found[name] = None if None in times else statistics.median(times) * 1e6
    return found


def _seconds(function: Any) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _vmas_seconds(env: VmasEnv, action: dict[str, Tensor]) -> float | None:
    """One step of the simulator with gradients, and one backward pass; None where that cannot be done."""
    world = env.world
    for slot in world.pool.main.tensors.values():
        if slot.value.requires_grad:  # of the step before
            slot.write(slot.value.detach())
    handed = {g: a.clone().requires_grad_() for g, a in action.items()}
    with world.pool.preserved(), world.pool.stream:
        begin = time.perf_counter()
        try:
            observations, rewards, *_ = world.simulator.step(world.split_actions({g: a * 1 for g, a in handed.items()}))
            total = sum(v.sum() for v in world.observe(world.simulator, observations).values())
            (total + sum(r.sum() for r in rewards)).backward()
        except RuntimeError:
            return None
        return time.perf_counter() - begin


HEADINGS = (
    "scenario",
    "operations: step, gradients",
    "compile, s",
    "error against differences: median, 95 %, worst",
    "against VMAS's autograd: median, 95 %",
    "step, µs",
    "gradients, µs",
    "ratio",
    "VMAS, step and backward, ms",
    "ratio to gradients",
    "ratio to step and gradients",
)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; a row without timing has empty cells."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- ", "|---").replace("|--- |", "|---|")


def _cells(row: dict[str, Any]) -> list[str]:
    if row["why"]:
        return [row["scenario"], "—", "", row["why"], *[""] * 7]
    own, found = row["autograd"], [row["scenario"], f"{row['step_operations']:,}, {row['operations']:,}"]
    found += [f"{row['seconds']['compilers']:.1f}", f"{row['median']:.0e}, {row['most']:.0e}, {row['worst']:.0e}"]
    found.append(own if isinstance(own, str) else f"{own[0]:.0e}, {own[1]:.0e}")
    if "step_us" not in row:
        return found + [""] * 6
    step, gradient, vmas = row["step_us"], row["gradient_us"], row["vmas_us"]
    found += [f"{step:.0f}", f"{gradient:.0f}", f"{gradient / step:.1f}"]
    return found + (
        [f"{vmas / 1e3:.1f}", f"{vmas / gradient:.0f}", f"{vmas / (step + gradient):.0f}"] if vmas else ["—", "", ""]
    )


def merge(old: list[str], new: list[str]) -> list[str]:
    """A row's new cells; of a program that is as long as before, what was not measured again stays."""
    if old[1] != new[1] or len(old) != len(new):
        return new
    compiled = old[2] if new[2] == "0.0" else new[2]  # its library was on disk
    timed = new[5:] if new[5] else old[5:]
    return [*new[:2], compiled, *new[3:5], *timed]


if __name__ == "__main__":
    torch.set_num_threads(1)
    command(__doc__, measure, table, merge)
