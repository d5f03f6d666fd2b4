"""Compares a compiled kernel with the eager simulator: one step from the same state, many states, every output."""

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.tracing.rewrite import Rewriter, location
from envs.kernel.tracing.tape import Recorder, Refusal, Tape
from envs.kernel.tracing.trace import refusing, reset_as_drawn
from envs.kernel.verification.audit import StepAudit
from envs.kernel.verification.reach import late_states
from envs.rng import random_state, set_random_state
from envs.vmas.simulator_state import copies
from envs.vmas.world import VmasWorld

TOLERANCE = 2e-4  # of a number's size (at least 1): one step's rounding; contacts amplify it by forces of some 100
AMPLIFIED = 64  # times what a change of the state's last bits does to the simulator's own step: joints are stiff
STEPS = 12  # eager steps compared; every environment of the template counts


@dataclass
class Report:
    """How far a kernel was from the simulator."""

    worst: dict[str, float] = field(default_factory=dict)  # "observation", "reward", "info", "state" -> relative error
    largest: dict[str, float] = field(default_factory=dict)  # the same, of environments that went astray too
    compared: int = 0  # environments times steps
    astray: int = 0  # of those, with an error above TOLERANCE or another done
    flips: int = 0  # of those, with another done


@dataclass
class Comparison:
    """Compares a kernel with the simulator of `world`, step by step, each from the simulator's own state.

    The simulator steps on; the kernel takes its state over before every step. Where a step amplifies rounding, the
    simulator is its own measure: it steps again from a state with other last bits. They need not be on one device.
    unrolled: compare with the simulator under the same rewriting of rejection loops and masked draws as the kernel's
    (their numbers of draws differ).
    """

    world: VmasWorld
    kernel: KernelStep
    unrolled: bool
    report: Report = field(default_factory=Report)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        num_envs = self.world.num_envs
        where = self.kernel.device
        self._outputs = {key: torch.empty(num_envs, n, device=where) for key, n in self.kernel.places.outputs}
        for name in ("terminated", "truncated"):
            self._outputs[name,] = torch.empty(num_envs, dtype=torch.bool, device=where)
        self.kernel.bind(self._outputs)

    def step(self, action: dict[str, Tensor]) -> None:
        """One step of both, {group: [E, A, D]}; the report counts what differs."""
        world, kernel, report, pool = self.world, self.kernel, self.report, self.world.pool
        pool.main.refresh()
        kernel.load_state(_reader(pool.main))
        action = {name: a.contiguous() for name, a in action.items()}
        kernel.bind({("action", name): a.to(kernel.device) for name, a in action.items()})
        saved = _clones(pool)
        with pool.stream:
            before = random_state(world.device)
            kernel.draw(world.device)
            set_random_state(world.device, before)
            kernel.step()
            expected = self._simulator(action)
        ours = {key: value.cpu() for key, value in self._outputs.items()}
        for path, value in kernel.store_state(_reader(pool.main)).items():
            ours["state", path] = value.cpu().movedim(kernel.shapes[path][2], 0).reshape(world.num_envs, -1)
        error, flipped = _apart(ours, expected, report), _flipped(ours, expected)
        wrong = flipped | ~(error <= TOLERANCE)
        if wrong.any():
            after = _clones(pool)
            _shake(kernel, pool.main, saved, self.generator)
            with pool.stream:
                ended = random_state(world.device)
                set_random_state(world.device, before)
                shaken = self._simulator(action)
                set_random_state(world.device, ended)
            wrong &= ~_flipped(shaken, expected) & (flipped | (error > AMPLIFIED * _apart(shaken, expected)))
            for path, value in after.items():
                pool.main.tensors[path].write(value)
        report.compared += world.num_envs
        report.flips += int(flipped.sum())
        report.astray += int(wrong.sum())

    @property
    def over(self) -> list[Tensor]:
        """What the kernel's steps write on ends of episodes, two of [E], on its device."""
        return [self._outputs["terminated",], self._outputs["truncated",]]

    def _simulator(self, action: dict[str, Tensor]) -> dict[tuple, Tensor]:
        kernel, main = self.kernel, self.world.pool.main
        expected = eager_step(self.world, action, self.unrolled)
        for path in {p for p, _ in kernel.places.fields} | set(kernel.tables):
            rows = main.tensors[path].value.movedim(kernel.shapes[path][2], 0)
            expected["state", path] = rows.detach().reshape(self.world.num_envs, -1).clone()
        return {key: value.cpu() for key, value in expected.items()}

    def difference(self) -> str:
        """One sentence where the kernel is astray in more than one of a thousand environments, else ""."""
        report = self.report
        if report.astray <= max(1, report.compared // 1000):
            return ""
        largest = ", ".join(f"{key} {value:.1g}" for key, value in report.largest.items() if value > TOLERANCE)
        where = f"{report.astray} of {report.compared} steps"
        errors = f"largest relative errors: {largest or 'none'}; {report.flips} other dones"
        return f"the kernel disagrees with the simulator of {file_of(self.world)} in {where} ({errors})"


def verify(template: VmasWorld, kernel: KernelStep, unrolled: bool = False, steps: int = STEPS) -> Report:
    """Plays `steps` random steps in the template and compares each with the kernel's, from the same state and noise.

    A third of the environments is squeezed together first, so that bodies touch, and some stand at their time limit.
    Then come states that the kernel reaches late in an episode.
    Raises Refusal if more than one in a thousand environments goes astray: a comparison such as `distance < limit` may
    flip by rounding, but rarely.
    """
    comparison, audit = Comparison(template, kernel, unrolled), StepAudit()
    before = audit.look(template.simulator, template.pool.main)
    with refusing(template.scenario), audit.step(calls=False):
        for i in range(steps):
            if i % 4 == 0:
                arrange(template, comparison.generator, i, {path for path, _ in kernel.places.fields}, kernel.constants)
            comparison.step(template.random_action(comparison.generator))
        for _ in late_states(template, kernel, comparison.generator, comparison.over):
            comparison.step(template.random_action(comparison.generator))
    audit.compare(before, audit.look(template.simulator, template.pool.main), "a step", first=True)
    reason = audit.reason or comparison.difference()
    if reason:
        raise Refusal(reason)
    return comparison.report


def file_of(world: VmasWorld) -> str:
    """The name of the file that a scenario's class stands in, of its module where there is none."""
    module = type(world.simulator.scenario).__module__
    return Path(getattr(sys.modules.get(module), "__file__", None) or module).name


def _clones(pool) -> dict[str, Tensor]:
    """The tensors of the environments by path; paths that hold one tensor get one clone."""
    return copies({path: slot for path, slot in pool.main.tensors.items() if pool.axes.get(path) is not None})


def _reader(state):
    return lambda path: state.tensors[path].value


def eager_step(world: VmasWorld, action: dict[str, Tensor], rewritten: bool, *modes: Any) -> dict[tuple, Tensor]:
    """The simulator's own step, as {output: [E, numbers]}; its state is then the one after the step.

    rewritten: under the same rewriting of branches, loops and masked reads as a trace. modes: entered around the step.
    """
    pool, simulator = world.pool, world.simulator
    with torch.no_grad(), ExitStack() as stack:
        if rewritten:
            tape = Tape()
            for path, slot in pool.main.tensors.items():
                if pool.axes.get(path) is not None:
                    tape.input(slot.value, ("state", path))
            for name, value in action.items():
                tape.input(value, ("action", name))
            stack.enter_context(Recorder(tape, location))
            stack.enter_context(Rewriter(tape, world.num_envs))
        for mode in modes:
            stack.enter_context(mode)
        observations, rewards, ended, over, infos = simulator.step(world.split_actions(action))
        expected = {("observation", name): v for name, v in world.observe(simulator, observations).items()}
        for name, group in world.groups.items():
            expected["reward", name] = group.reward(rewards)
            for key, value in group.info(infos).items():
                expected["info", name, key] = value
    pool.main.refresh()
    expected = {key: value.detach().reshape(world.num_envs, -1).clone() for key, value in expected.items()}
    ended, over = ended.reshape(-1).clone(), over.reshape(-1).clone()
    return {**expected, ("terminated",): ended, ("truncated",): over & ~ended}


def _flipped(ours: dict[tuple, Tensor], theirs: dict[tuple, Tensor]) -> Tensor:
    """[E]: whether a done differs."""
    ended = ours["terminated",] != theirs["terminated",]
    return ended | (ours["truncated",] != theirs["truncated",])


def _shake(kernel: KernelStep, state, saved: dict[str, Tensor], generator: torch.Generator) -> None:
    """Puts a state back, the numbers that the kernel carries off by up to two units in the last place."""
    shaken: dict[int, Tensor] = {}  # by id: paths that hold one tensor hold one afterwards
    for path, value in saved.items():
        if path not in state.tensors:
            continue
        if id(value) in shaken:
            state.tensors[path].write(shaken[id(value)])
            continue
        clone = value
        if value.dtype == torch.float32 and path in kernel.columns and path != "steps":
            axis = kernel.shapes[path][2]
            rows = value.movedim(axis, 0)
            flat, elements = rows.reshape(len(rows), -1).clone(), kernel.columns[path][1].to(value.device)
            noise = torch.rand(len(rows), len(elements), generator=generator) - 0.5
            flat[:, elements] *= 1 + 2.4e-7 * noise.to(value.device)
            clone = flat.reshape(rows.shape).movedim(0, axis)
        shaken[id(value)] = clone
        state.tensors[path].write(clone)


def _apart(ours: dict[tuple, Tensor], theirs: dict[tuple, Tensor], report: Report | None = None) -> Tensor:
    """[E]: each environment's largest relative error; equal infinities and nans are none."""
    error = torch.zeros(len(theirs["terminated",]))
    for key, b in theirs.items():
        if len(key) == 1 or not b.numel():
            continue
        unequal = not b.is_floating_point() and ours[key].double() != b.double()  # whole numbers know no rounding
        a, b = ours[key].float(), b.float()
        apart = (a - b).abs() / b.abs().clamp(min=1)
        apart = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, apart)
        apart = torch.where(apart.isnan() | unequal, torch.inf, apart).amax(1)
        if report is not None:
            ordinary = apart[apart <= TOLERANCE]
            largest = float(ordinary.max()) if len(ordinary) else 0.0
            report.worst[key[0]] = max(report.worst.get(key[0], 0.0), largest)
            report.largest[key[0]] = max(report.largest.get(key[0], 0.0), float(apart.max()))
        error = torch.maximum(error, apart)
    return error


def arrange(template: VmasWorld, generator: torch.Generator, round: int, varies: set[str], constants: Any = ()) -> None:
    """A fresh reset, with a third of the environments squeezed together and some at the time limit.

    varies: the paths that may be changed; constants: (path, element) of those that may not.
    """
    pool = template.pool
    reset_as_drawn(template)
    pinned = {path for path, _ in constants}
    squeezed = torch.rand(template.num_envs, generator=generator) < 0.34
    for path, slot in pool.main.tensors.items():
        if path.endswith("_state._pos") and path in varies and path not in pinned:
            factor = torch.where(squeezed, torch.rand(template.num_envs, generator=generator), 1.0)
            slot.write(slot.value * factor.view(-1, 1))
    steps = pool.main.tensors.get("steps")
    if steps is not None and template.spec.max_steps is not None:
        late = torch.rand(template.num_envs, generator=generator) < 0.2
        steps.write(torch.where(late, float(template.spec.max_steps - 1 - round % 2), steps.value))
