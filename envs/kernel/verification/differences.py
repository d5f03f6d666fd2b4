"""Compares a gradient kernel with differences of the step's program in double precision, at many states.

A branch that is taken at a single point (`where(speed == 0, …)`) has its own gradient there, as in torch, and not that
of what lies around it: whether numbers are equal is held fixed. A difference across a kink is no derivative. So both
sides are looked at: where they differ, the gradient must lie between them, and only where they agree must it equal
them. A wrong rule is wrong where the two sides agree as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.ir.gradient import TABLE, Gradient, seeds
from envs.kernel.ir.layout import count_of
from envs.kernel.ir.program import OPERATIONS, Program
from envs.kernel.tracing.tape import Refusal
from envs.kernel.verification.reach import late_states
from envs.kernel.verification.verify import AMPLIFIED, arrange
from envs.vmas.world import VmasWorld

STEPS = (1e-6, 1e-8)  # of differences along a direction of normal numbers; the finer one where slopes change fast
TOLERANCE = 1e-3  # of the derivative's size, at least 1: the kernel's own rounding, amplified by contacts
BESIDE, LAST_BITS = (1e-3, 1e-4), (2.4e-7, 1e-9)  # relative and absolute moves: off any kink, and by rounding
ASTRAY = 200  # one comparison in so many may miss: a condition may flip between float32 and float64
EXACT = {"min": np.minimum, "max": np.maximum}  # without the rounding to float32
ROUNDS = 8  # random steps compared beside the late states; every environment of the template counts


@dataclass
class GradientReport:
    """How far a gradient kernel was from differences: directional derivatives, one per environment and state."""

    errors: list[np.ndarray] = field(default_factory=list)  # relative, of smooth points
    compared: int = 0
    kinked: int = 0  # of those, where the two sides disagree or the place is too rough to tell
    astray: int = 0  # of those, outside of what the two sides allow

    def facts(self) -> dict[str, float]:
        """What is kept of it: relative errors at smooth points, and how many points there were."""
        errors = np.concatenate(self.errors)
        median, most = np.quantile(errors, (0.5, 0.95)) if len(errors) else (0.0, 0.0)
        return {
            "median": float(median),
            "most": float(most),
            "worst": float(errors.max(initial=0.0)),
            "compared": self.compared,
            "kinked": self.kinked,
            "astray": self.astray,
        }


@dataclass
class Point:
    """Where a derivative is looked at: the step's inputs and tables, a direction, and weights of what it gives."""

    inputs: dict[tuple, np.ndarray]
    tables: dict[str, np.ndarray]
    directions: dict[tuple, np.ndarray]
    weights: dict[tuple, np.ndarray]

    def moved(self, distance: float) -> dict[tuple, np.ndarray]:
        """The inputs at a distance along the direction."""
        return self.inputs | {s: self.inputs[s] + distance * d for s, d in self.directions.items()}

    def rows(self, rows: np.ndarray) -> Point:
        """The same of some environments."""
        return Point(
            *(
                {name: x[rows] for name, x in each.items()}
                for each in (self.inputs, self.tables, self.directions, self.weights)
            )
        )

    def shaken(self, rng: np.random.Generator, by: tuple[float, float]) -> Point:
        """A point beside it: every number of the direction moved, relatively and absolutely."""
        relative, absolute = by
        moved = {
            s: self.inputs[s] * (1 + relative * rng.uniform(-1, 1, len(d))) + absolute * rng.uniform(-1, 1, len(d))
            for s, d in self.directions.items()
        }
        return replace(self, inputs=self.inputs | moved)


def evaluate_double(
    program: Program,
    outputs: list[int],
    inputs: dict[tuple, np.ndarray],
    tables: dict[str, np.ndarray],
    equal: dict[int, np.ndarray] | None = None,
) -> list[np.ndarray]:
    """A program in double precision on arrays {source: [E]} and tables {path: [E, n]}, which stay as they are.

    equal: answers to questions whether two numbers are equal; those that are not in it are added.
    """
    values: dict[int, np.ndarray] = {}
    tables = {path: table.copy() for path, table in tables.items()}
    with np.errstate(all="ignore"):
        for v in program.live(outputs):
            name, *args = program.ops[v]
            if name == "const":
                number = program.number(v)
                values[v] = np.asarray(number if program.kinds[v] == "b" else np.float64(number))
            elif name == "input":
                values[v] = inputs[args[0]]
            elif name in ("load", "store"):
                table, index = tables[args[0]], np.asarray(values[args[2]])
                rows, cells = np.arange(len(table)), np.broadcast_to(index, len(table)).astype(int)
                inside = (cells >= 0) & (cells < table.shape[1])
                if name == "load":
                    found = np.where(inside, table[rows, np.where(inside, cells, 0)], 0.0)
                    values[v] = found != 0 if program.kinds[v] == "b" else found
                else:
                    new = np.broadcast_to(values[args[3]], len(table))
                    table[rows[inside], cells[inside]] = new[inside]
            elif equal is not None and v in equal:
                values[v] = equal[v]
            else:
                values[v] = EXACT.get(name, OPERATIONS[name][1])(*[values[a] for a in args])
                if equal is not None and name in ("eq", "ne"):
                    equal[v] = values[v]
    return [values[v] for v in outputs]


class GradientCheck:
    """Compares a gradient kernel with differences of its program, from states that a world is put into."""

    def __init__(self, world: VmasWorld, gradient: Gradient, step: KernelStep, kernel: GradientKernel) -> None:
        self.world, self.gradient, self.step, self.kernel = world, gradient, step, kernel
        self.lowered, self.program = gradient.lowered, gradient.lowered.program
        self.report, self.rng = GradientReport(), np.random.default_rng(0)
        self.named = seeds(self.lowered)
        self.inputs = {op[1]: v for v, op in enumerate(self.program.ops) if op[0] == "input"}
        where = step.device
        outputs = {key: torch.empty(world.num_envs, n, device=where) for key, n in step.places.outputs}
        self.ended = [torch.empty(world.num_envs, dtype=torch.bool, device=where) for _ in range(2)]
        step.bind(outputs | {("terminated",): self.ended[0], ("truncated",): self.ended[1]})

    def compare(self, action: dict[str, torch.Tensor]) -> None:
        """One directional derivative per environment, from the world's present state."""
        num_envs, step = self.world.num_envs, self.step
        main = self.world.pool.main
        main.refresh()
        step.load_state(lambda path: main.tensors[path].value)
        with self.world.pool.stream:
            step.draw()
        inputs = self._numbers(action)
        directions = {
            s: self.rng.standard_normal(num_envs)
            for s, v in self.inputs.items()
            if s[0] in ("state", "action") and s in inputs and self.program.kinds[v] == "f"
        }
        weights = {name: self.rng.standard_normal(num_envs).astype(np.float32) for name, _ in self.named}
        tables = {path: table.double().cpu().numpy() for path, table in step.tables.items()}
        point = Point(inputs, tables, directions, {name: w.astype(np.float64) for name, w in weights.items()})
        ours = self._ours(action, weights, directions)
        left, right = self._sides(point, ours)
        rough = self._rough(point, ours, left, right)
        self._count(ours, left, right, rough)

    def _sides(self, point: Point, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One-sided differences, the finer ones only where the coarser ones miss."""
        equal: dict[int, np.ndarray] = {}

        def at(distance: float) -> np.ndarray:
            values = evaluate_double(
                self.program, [v for _, v in self.named], point.moved(distance), point.tables, equal
            )
            return sum(point.weights[name] * v for (name, _), v in zip(self.named, values, strict=True))

        here = at(0.0)
        left, right = np.full((2, len(ours)), np.nan)
        missed = np.ones(len(ours), bool)
        for h in STEPS:
            left, right = np.where(missed, (here - at(-h)) / h, left), np.where(missed, (at(h) - here) / h, right)
            missed = ~_within(ours, left, right)
            if not missed.any():
                break
        return left, right

    def _rough(self, point: Point, ours: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """bool [E]: where the differences miss for want of a smooth place, and not for a wrong rule.

        Kinks may lie closer than any difference sees (a body that all but rests). A rule that is right is so a little
        way off, and a kernel that is right then differs from its program in double precision by rounding alone, of
        which the program is its own measure.
        """
        rough = np.zeros(len(ours), bool)
        rows = np.flatnonzero(np.isfinite(left) & np.isfinite(right) & ~_within(ours, left, right))
        if len(rows):
            here = point.rows(rows)
            beside, shaken = here.shaken(self.rng, BESIDE), here.shaken(self.rng, LAST_BITS)
            derivative = self._double(beside)
            right_rule = _within(derivative, *self._sides(beside, derivative))
            exact = self._double(here)
            scale = TOLERANCE * np.maximum(1, np.abs(exact)) + AMPLIFIED * np.abs(self._double(shaken) - exact)
            rough[rows] = right_rule & (np.abs(ours[rows] - exact) <= scale)
        return rough

    def _double(self, point: Point) -> np.ndarray:
        """The derivative by the gradient program in double precision."""
        sources = [("state", *key) for key in self.lowered.fields]
        values = list(zip(sources, self.gradient.state, strict=True))
        values += [(("action", g, k), v) for g, row in self.gradient.actions.items() for k, v in enumerate(row)]
        values = [(s, v) for s, v in values if v is not None and s in point.directions]
        tables = point.tables | {TABLE + path: np.zeros_like(table) for path, table in point.tables.items()}
        found = evaluate_double(self.program, [v for _, v in values], point.inputs | point.weights, tables)
        return sum(point.directions[s] * x for (s, _), x in zip(values, found, strict=True))

    def _count(self, ours: np.ndarray, left: np.ndarray, right: np.ndarray, rough: np.ndarray) -> None:
        report, central = self.report, (left + right) / 2
        known = np.isfinite(left) & np.isfinite(right)
        kinked = known & (rough | (np.abs(right - left) > TOLERANCE * np.maximum(1, np.abs(central))))
        error = np.abs(ours - central) / np.maximum(1, np.abs(central))
        report.errors.append(error[known & ~kinked])
        report.compared += int(known.sum())
        report.kinked += int(kinked.sum())
        report.astray += int((known & ~rough & ~_within(ours, left, right)).sum())

    def _numbers(self, action: dict[str, torch.Tensor]) -> dict[tuple, np.ndarray]:
        """{source of an input: float64 [E]} of the state, the actions and the noise that lie in the step's kernel."""
        num_envs, step, numbers = self.world.num_envs, self.step, {}
        state, random = step.state.cpu(), step.random.cpu()
        for i, key in enumerate(step.places.fields):
            row = state[i, :num_envs].double().numpy()
            numbers["state", *key] = row != 0 if self._is_bool(("state", *key)) else row
        for group, value in action.items():
            for k, row in enumerate(value.reshape(num_envs, -1).double().numpy().T):
                numbers["action", group, k] = row
        start = 0
        for i, (_, _, _, shape, _) in enumerate(self.lowered.noise):
            for k in range(count_of(shape)):
                row = random[:, start + k].double().numpy()
                numbers["noise", i, k] = row != 0 if self._is_bool(("noise", i, k)) else row
            start += count_of(shape)
        return numbers

    def _is_bool(self, source: tuple) -> bool:
        return source in self.inputs and self.program.kinds[self.inputs[source]] == "b"

    def _ours(
        self, action: dict[str, torch.Tensor], weights: dict[tuple, np.ndarray], directions: dict[tuple, np.ndarray]
    ) -> np.ndarray:
        """float64 [E]: the kernel's derivative of the weighted outputs along the directions."""
        num_envs, kernel, step = self.world.num_envs, self.kernel, self.step
        given = {
            ("state",): step.state,
            ("noise",): step.random,
            ("gradient", "state"): torch.zeros(len(step.places.fields), kernel.padded),
        }
        for i, key in enumerate(step.places.fields):
            if ("gradient", "state", *key) in weights:
                given["gradient", "state"][i, :num_envs] = torch.from_numpy(weights["gradient", "state", *key])
        for key, count in kernel.places.outputs:
            rows = [weights.get(("gradient", *key, k), np.zeros(num_envs, np.float32)) for k in range(count)]
            given["gradient", *key] = torch.from_numpy(np.stack(rows, 1))
        for path, count, _ in kernel.places.tables:
            given["table", path] = torch.zeros(num_envs, count) if path.startswith(TABLE) else step.tables[path].clone()
        given |= {("action", group): value for group, value in action.items()}
        given = {name: tensor.to(kernel.device) for name, tensor in given.items()}
        actions = kernel(given)
        total, state = np.zeros(num_envs), given["gradient", "state"].cpu()
        for i, key in enumerate(step.places.fields):
            if ("state", *key) in directions:
                total += state[i, :num_envs].double().numpy() * directions["state", *key]
        for group, gradients in actions.items():
            for k, row in enumerate(gradients.double().cpu().numpy().T):
                if ("action", group, k) in directions:
                    total += row * directions["action", group, k]
        return total


def _within(ours: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """bool [E]: whether a derivative lies between one-sided differences, but for rounding."""
    scale = TOLERANCE * np.maximum(1, np.abs(left + right) / 2)
    return (ours >= np.minimum(left, right) - scale) & (ours <= np.maximum(left, right) + scale)


def _states(
    template: VmasWorld, step: KernelStep, generator: torch.Generator, over: list[torch.Tensor]
) -> Iterator[None]:
    """The world in many states: just reset, squeezed together, at its time limit, later, and late in an episode."""
    for i in range(ROUNDS):
        if i % 4 == 0:
            arrange(template, generator, i, {path for path, _ in step.places.fields}, step.constants)
        yield
        with torch.no_grad():
            template.step(template.random_action(generator))
    yield from late_states(template, step, generator, over)


def verify_gradient(
    template: VmasWorld, gradient: Gradient, step: KernelStep, kernel: GradientKernel
) -> GradientReport:
    """Compares at many states. Raises Refusal if more than one comparison in 200 is outside of both sides."""
    check, generator = GradientCheck(template, gradient, step, kernel), torch.Generator().manual_seed(0)
    for _ in _states(template, step, generator, check.ended):
        action = {name: a.contiguous() for name, a in template.random_action(generator).items()}
        check.compare(action)
    report = check.report
    if report.astray > max(1, report.compared // ASTRAY):
        worst = report.facts()["worst"]
        raise Refusal(
            f"its gradients differ from differences of the step in {report.astray} of {report.compared} "
            f"comparisons; the largest relative error at a smooth point is {worst:.1g}"
        )
    return report
