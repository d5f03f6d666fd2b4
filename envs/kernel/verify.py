"""Compares a compiled kernel with the eager simulator: one step from the same state, many states, every output."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from envs.kernel.rewrite import Rewriter, location
from envs.kernel.runtime import KernelStep
from envs.kernel.tape import Recorder, Refusal, Tape

TOLERANCE = 2e-4  # of a number's size (at least 1): one step's rounding; contacts amplify it by forces of some 100
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
        with pool.stream:
            before = torch.get_rng_state()
            kernel.draw()
            torch.set_rng_state(before)
            kernel.step()
            wanted, terminated, truncated = _eager(twin, action, unrolled)
        pool.main.refresh()
        error = torch.zeros(num_envs)
        for key, value in wanted.items():
            error = _worse(report, key[0], error, outputs[key], value.reshape(num_envs, -1).float())
        for path, value in kernel.store_state(main).items():
            axis = kernel.shapes[path][2]
            theirs = [v.movedim(axis, 0).reshape(num_envs, -1).float() for v in (value, main(path))]
            error = _worse(report, "state", error, *theirs)
        flipped = (terminated != ended) | (truncated != over)
        report.compared += num_envs
        report.flips += int(flipped.sum())
        report.astray += int((flipped | ~(error <= TOLERANCE)).sum())
    if report.astray > max(1, report.compared // 1000):
        raise Refusal(f"the kernel disagrees with the simulator in {report.astray} of {report.compared} steps "
                      f"(largest relative errors: {', '.join(f'{k} {v:.1g}' for k, v in report.worst.items())}, "
                      f"{report.flips} dones)")
    return report


def _reader(state):
    return lambda path: state.tensors[path].value


def _eager(twin, action: dict[str, Tensor], unrolled: bool):
    """The simulator's own step: ({output: value}, terminated, truncated)."""
    with torch.no_grad():
        if unrolled:
            tape = Tape()
            for path, slot in twin._pool.main.tensors.items():
                if twin._pool.axes.get(path) is not None:
                    tape.input(slot.value, ("state", path))
            for name, value in action.items():
                tape.input(value, ("action", name))
            with Recorder(tape, location), Rewriter(tape, twin.num_envs):
                observations, rewards, ended, over, infos = twin.simulator.step(twin._hand_out(action))
        else:
            observations, rewards, ended, over, infos = twin.simulator.step(twin._hand_out(action))
        wanted = {("observation", name): v for name, v in twin._observe(twin.simulator, observations).items()}
        for name, group in twin._groups.items():
            wanted["reward", name] = group.reward(rewards)
            for key, value in group.info(infos).items():
                wanted["info", name, key] = value
    ended = ended.reshape(-1)
    return wanted, ended, over.reshape(-1) & ~ended


def _arrange(twin, kernel: KernelStep, generator: torch.Generator, round: int) -> None:
    """A fresh reset, with a third of the environments squeezed together and some at the time limit."""
    pool = twin._pool
    drawn = {path: pool.main.host_values()[path] for path in pool.drawn if path in pool.main.host}
    with pool.stream:
        twin.simulator.reset()
    pool.main.refresh()
    pool.main.write_host(drawn)
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


def _worse(report: Report, name: str, error: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """The running largest relative error of each environment; equal infinities and nans are no error."""
    if not ours.numel():
        return error
    apart = (ours - theirs).abs() / theirs.abs().clamp(min=1)
    apart = torch.where((ours == theirs) | (ours.isnan() & theirs.isnan()), 0.0, apart)
    apart = torch.where(apart.isnan(), torch.inf, apart).amax(1)
    ordinary = apart[apart <= TOLERANCE]
    report.worst[name] = max(report.worst.get(name, 0.0), float(ordinary.max()) if len(ordinary) else 0.0)
    return torch.maximum(error, apart)
