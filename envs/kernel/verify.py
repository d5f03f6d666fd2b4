"""Compares a compiled kernel with the eager simulator: one step from the same state, many states, every output."""

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from envs.kernel.rewrite import Rewriter, location
from envs.kernel.runtime import KernelStep
from envs.kernel.tape import Recorder, Refusal, Tape
from envs.kernel.trace import drawn_values, set_drawn

TOLERANCE = 2e-4  # of a number's size (at least 1): one step's rounding; contacts amplify it by forces of some 100
AMPLIFIED = 64  # times what a change of the state's last bits does to the simulator's own step: joints are stiff
STEPS = 12  # eager steps compared; every environment of the twin counts


@dataclass
class Report:
    """How far a kernel was from the simulator."""

    worst: dict[str, float] = field(default_factory=dict)  # "observation", "reward", "info", "state" -> relative error
    compared: int = 0  # environments times steps
    astray: int = 0  # of those, with an error above TOLERANCE or another done
    flips: int = 0  # of those, with another done


def verify(twin, kernel: KernelStep, unrolled: bool = False, steps: int = STEPS) -> Report:
    """Plays `steps` random steps on the twin and compares each with the kernel's, from the same state and noise.

    A third of the environments is squeezed together first, so that bodies touch, and some stand at their time limit.
    Where a step amplifies rounding, the simulator is its own measure: it steps again from a state with other last bits.
    unrolled: compare with the simulator under the same rewriting of rejection loops and masked draws as the kernel's
    (their numbers of draws differ). Raises Refusal if more than one in a thousand environments goes astray: a
    comparison such as `distance < limit` may flip by rounding, but rarely.
    """
    report, pool, num_envs = Report(), twin._pool, twin.num_envs
    main = _reader(pool.main)
    outputs = {key: torch.empty(num_envs, n) for key, n in kernel.places.outputs}
    ended, over = torch.empty(num_envs, dtype=torch.bool), torch.empty(num_envs, dtype=torch.bool)
    kernel.bind({**outputs, ("terminated",): ended, ("truncated",): over})
    generator = torch.Generator().manual_seed(0)
    for i in range(steps):
        if i % 4 == 0:
            _arrange(twin, kernel, generator, i)
        pool.main.refresh()
        kernel.load_state(main)
        action = {name: a.contiguous() for name, a in twin.random_action(generator).items()}
        kernel.bind({("action", name): a for name, a in action.items()})
        saved = {
            path: slot.value.clone() for path, slot in pool.main.tensors.items() if pool.axes.get(path) is not None
        }
        with pool.stream:
            before = torch.get_rng_state()
            kernel.draw()
            torch.set_rng_state(before)
            kernel.step()
            wanted = _eager(twin, kernel, action, unrolled)
        ours = {**outputs, ("terminated",): ended, ("truncated",): over}
        for path, value in kernel.store_state(main).items():
            ours["state", path] = value.movedim(kernel.shapes[path][2], 0).reshape(num_envs, -1)
        error = _apart(ours, wanted, report)
        flipped = (wanted["terminated",] != ended) | (wanted["truncated",] != over)
        wrong = flipped | ~(error <= TOLERANCE)
        if wrong.any():
            _shake(kernel, pool.main, saved, generator)
            with pool.stream:
                torch.set_rng_state(before)
                shaken = _eager(twin, kernel, action, unrolled)
            moved = (shaken["terminated",] != wanted["terminated",]) | (shaken["truncated",] != wanted["truncated",])
            wrong &= ~moved & (flipped | (error > AMPLIFIED * _apart(shaken, wanted)))
        report.compared += num_envs
        report.flips += int(flipped.sum())
        report.astray += int(wrong.sum())
    if report.astray > max(1, report.compared // 1000):
        raise Refusal(
            f"the kernel disagrees with the simulator in {report.astray} of {report.compared} steps "
            f"(largest relative errors: {', '.join(f'{k} {v:.1g}' for k, v in report.worst.items())}, "
            f"{report.flips} dones)"
        )
    return report


def _reader(state):
    return lambda path: state.tensors[path].value


def _eager(twin, kernel: KernelStep, action: dict[str, Tensor], unrolled: bool) -> dict[tuple, Tensor]:
    """The simulator's own step, as {output: [E, numbers]}, its state after it included."""
    num_envs, pool = twin.num_envs, twin._pool
    with torch.no_grad(), ExitStack() as modes:
        if unrolled:
            tape = Tape()
            for path, slot in pool.main.tensors.items():
                if pool.axes.get(path) is not None:
                    tape.input(slot.value, ("state", path))
            for name, value in action.items():
                tape.input(value, ("action", name))
            modes.enter_context(Recorder(tape, location))
            modes.enter_context(Rewriter(tape, num_envs))
        observations, rewards, ended, over, infos = twin._simulator.step(twin._hand_out(action))
        wanted = {("observation", name): v for name, v in twin._observe(twin._simulator, observations).items()}
        for name, group in twin._groups.items():
            wanted["reward", name] = group.reward(rewards)
            for key, value in group.info(infos).items():
                wanted["info", name, key] = value
    pool.main.refresh()
    for path in {p for p, _ in kernel.places.fields} | set(kernel.tables):
        wanted["state", path] = pool.main.tensors[path].value.movedim(kernel.shapes[path][2], 0)
    wanted = {key: value.detach().reshape(num_envs, -1).clone() for key, value in wanted.items()}
    ended, over = ended.reshape(-1).clone(), over.reshape(-1).clone()
    return {**wanted, ("terminated",): ended, ("truncated",): over & ~ended}


def _shake(kernel: KernelStep, state, saved: dict[str, Tensor], generator: torch.Generator) -> None:
    """Puts a state back, the numbers that the kernel carries off by up to two units in the last place."""
    for path, value in saved.items():
        if path not in state.tensors:
            continue
        if value.dtype == torch.float32 and path in kernel.columns and path != "steps":
            axis = kernel.shapes[path][2]
            rows = value.movedim(axis, 0)
            flat, elements = rows.reshape(len(rows), -1).clone(), kernel.columns[path][1]
            noise = torch.rand(len(rows), len(elements), generator=generator) - 0.5
            flat[:, elements] *= 1 + 2.4e-7 * noise
            value = flat.reshape(rows.shape).movedim(0, axis)
        state.tensors[path].write(value)


def _apart(ours: dict[tuple, Tensor], theirs: dict[tuple, Tensor], report: Report | None = None) -> Tensor:
    """[E]: each environment's largest relative error; equal infinities and nans are none."""
    error = torch.zeros(len(theirs["terminated",]))
    for key, b in theirs.items():
        a, b = ours[key].float(), b.float()
        if len(key) == 1 or not b.numel():
            continue
        apart = (a - b).abs() / b.abs().clamp(min=1)
        apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, apart)
        apart = torch.where(apart.isnan(), torch.inf, apart).amax(1)
        if report is not None:
            ordinary = apart[apart <= TOLERANCE]
            largest = float(ordinary.max()) if len(ordinary) else 0.0
            report.worst[key[0]] = max(report.worst.get(key[0], 0.0), largest)
        error = torch.maximum(error, apart)
    return error


def _arrange(twin, kernel: KernelStep, generator: torch.Generator, round: int) -> None:
    """A fresh reset, with a third of the environments squeezed together and some at the time limit."""
    pool = twin._pool
    drawn = drawn_values(pool)
    with pool.stream:
        twin._simulator.reset()
    pool.main.refresh()
    set_drawn(pool, drawn)
    squeezed = torch.rand(twin.num_envs, generator=generator) < 0.34
    varies = {path for path, _ in kernel.places.fields}
    for path, slot in pool.main.tensors.items():
        if path.endswith("_state._pos") and path in varies and not _pinned(kernel, path):
            factor = torch.where(squeezed, torch.rand(twin.num_envs, generator=generator), 1.0)
            slot.write(slot.value * factor.view(-1, 1))
    steps = pool.main.tensors.get("steps")
    if steps is not None and twin.spec.max_steps is not None:
        late = torch.rand(twin.num_envs, generator=generator) < 0.2
        steps.write(torch.where(late, float(twin.spec.max_steps - 1 - round % 2), steps.value))


def _pinned(kernel: KernelStep, path: str) -> bool:
    return any(p == path for p, _ in kernel.constants)
