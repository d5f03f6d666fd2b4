"""Compares a gradient kernel with differences of the step's program in double precision, at many states.

A difference across a kink is no derivative. So both sides are looked at: where they differ, the gradient must lie
between them, and only where they agree must it equal them. A wrong rule is wrong where the two sides agree as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.ir.gradient import TABLE, seeds
from envs.kernel.ir.layout import count_of
from envs.kernel.ir.lowered_step import Lowered
from envs.kernel.ir.program import OPERATIONS, Program
from envs.kernel.tracing.tape import Refusal
from envs.kernel.verification.reach import late_states
from envs.kernel.verification.verify import arrange
from envs.vmas.world import VmasWorld

STEP = 1e-6  # of the differences, along a direction of normal numbers
TOLERANCE = 1e-3  # of the derivative's size, at least 1: the kernel's own rounding, amplified by contacts
ASTRAY = 200  # one comparison in so many may miss: a condition may flip between float32 and float64
EXACT = {"min": np.minimum, "max": np.maximum}  # without the rounding to float32
ROUNDS = 8  # random steps compared beside the late states; every environment of the template counts


@dataclass
class GradientReport:
    """How far a gradient kernel was from differences: directional derivatives, one per environment and state."""

    errors: list[np.ndarray] = field(default_factory=list)  # relative, of smooth points
    compared: int = 0
    kinked: int = 0  # of those, where the two sides of the difference disagree
    astray: int = 0  # of those, outside of what the two sides allow

    def facts(self) -> dict[str, float]:
        """What is kept of it: relative errors at smooth points, and how many points there were."""
        errors = np.concatenate(self.errors)
        median, most = np.quantile(errors, (0.5, 0.95)) if len(errors) else (0.0, 0.0)
        return {"median": float(median), "most": float(most), "worst": float(errors.max(initial=0.0)),
                "compared": self.compared, "kinked": self.kinked, "astray": self.astray}


def evaluate_double(program: Program, outputs: list[int], inputs: dict[tuple, np.ndarray],
                    tables: dict[str, np.ndarray]) -> list[np.ndarray]:
    """A program in double precision on arrays {source: [E]} and tables {path: [E, n]}, which stay as they are."""
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
            else:
                values[v] = EXACT.get(name, OPERATIONS[name][1])(*[values[a] for a in args])
    return [values[v] for v in outputs]


class GradientCheck:
    """Compares a gradient kernel with differences of `lowered`, from states that a world is put into."""

    def __init__(self, world: VmasWorld, lowered: Lowered, step: KernelStep, kernel: GradientKernel) -> None:
        self.world, self.lowered, self.step, self.kernel = world, lowered, step, kernel
        self.report, self.rng = GradientReport(), np.random.default_rng(0)
        self.named = seeds(lowered)
        self.inputs = {op[1]: v for v, op in enumerate(lowered.program.ops) if op[0] == "input"}
        outputs = {key: torch.empty(world.num_envs, n) for key, n in step.places.outputs}
        self.ended = [torch.empty(world.num_envs, dtype=torch.bool) for _ in range(2)]
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
        directions = {s: self.rng.standard_normal(num_envs) for s, v in self.inputs.items()
                      if s[0] in ("state", "action") and s in inputs and self.lowered.program.kinds[v] == "f"}
        weights = {name: self.rng.standard_normal(num_envs).astype(np.float32) for name, _ in self.named}
        ours = self._ours(action, weights, directions)
        tables = {path: table.double().numpy() for path, table in step.tables.items()}

        def at(distance: float) -> np.ndarray:
            moved = inputs | {s: inputs[s] + distance * d for s, d in directions.items()}
            values = evaluate_double(self.lowered.program, [v for _, v in self.named], moved, tables)
            return sum(weights[name].astype(np.float64) * v for (name, _), v in zip(self.named, values, strict=True))

        here, ahead, behind = at(0.0), at(STEP), at(-STEP)
        self._count(ours, (here - behind) / STEP, (ahead - here) / STEP, (ahead - behind) / (2 * STEP))

    def _count(self, ours: np.ndarray, left: np.ndarray, right: np.ndarray, central: np.ndarray) -> None:
        report, scale = self.report, TOLERANCE * np.maximum(1, np.abs(central))
        known = np.isfinite(left) & np.isfinite(right)
        low, high = np.minimum(left, right), np.maximum(left, right)
        kinked = known & (high - low > scale)
        astray = known & ~((ours >= low - scale) & (ours <= high + scale))
        error = np.abs(ours - central) / np.maximum(1, np.abs(central))
        report.errors.append(error[known & ~kinked])
        report.compared += int(known.sum())
        report.kinked += int(kinked.sum())
        report.astray += int(astray.sum())

    def _numbers(self, action: dict[str, torch.Tensor]) -> dict[tuple, np.ndarray]:
        """{source of an input: float64 [E]} of the state, the actions and the noise that lie in the step's kernel."""
        num_envs, step, numbers = self.world.num_envs, self.step, {}
        for i, key in enumerate(step.places.fields):
            row = step.state[i, :num_envs].double().numpy()
            numbers["state", *key] = row != 0 if self._is_bool(("state", *key)) else row
        for group, value in action.items():
            for k, row in enumerate(value.reshape(num_envs, -1).double().numpy().T):
                numbers["action", group, k] = row
        start = 0
        for i, (_, _, _, shape, _) in enumerate(self.lowered.noise):
            for k in range(count_of(shape)):
                row = step.random[:, start + k].double().numpy()
                numbers["noise", i, k] = row != 0 if self._is_bool(("noise", i, k)) else row
            start += count_of(shape)
        return numbers

    def _is_bool(self, source: tuple) -> bool:
        return source in self.inputs and self.lowered.program.kinds[self.inputs[source]] == "b"

    def _ours(self, action: dict[str, torch.Tensor], weights: dict[tuple, np.ndarray],
              directions: dict[tuple, np.ndarray]) -> np.ndarray:
        """float64 [E]: the kernel's derivative of the weighted outputs along the directions."""
        num_envs, kernel, step = self.world.num_envs, self.kernel, self.step
        given = {("state",): step.state, ("noise",): step.random,
                 ("gradient", "state"): torch.zeros(len(step.places.fields), kernel.padded)}
        for i, key in enumerate(step.places.fields):
            if ("gradient", "state", *key) in weights:
                given["gradient", "state"][i, :num_envs] = torch.from_numpy(weights["gradient", "state", *key])
        for key, count in kernel.places.outputs:
            rows = [weights.get(("gradient", *key, k), np.zeros(num_envs, np.float32)) for k in range(count)]
            given["gradient", *key] = torch.from_numpy(np.stack(rows, 1))
        for path, count, _ in kernel.places.tables:
            given["table", path] = torch.zeros(num_envs, count) if path.startswith(TABLE) else step.tables[path].clone()
        given |= {("action", group): value for group, value in action.items()}
        actions = kernel(given)
        total = np.zeros(num_envs)
        for i, key in enumerate(step.places.fields):
            if ("state", *key) in directions:
                total += given["gradient", "state"][i, :num_envs].double().numpy() * directions["state", *key]
        for group, gradients in actions.items():
            for k, row in enumerate(gradients.double().numpy().T):
                if ("action", group, k) in directions:
                    total += row * directions["action", group, k]
        return total


def _states(template: VmasWorld, step: KernelStep, generator: torch.Generator, over: list[torch.Tensor]
            ) -> Iterator[None]:
    """The world in many states: just reset, squeezed together, at its time limit, later, and late in an episode."""
    for i in range(ROUNDS):
        if i % 4 == 0:
            arrange(template, generator, i, {path for path, _ in step.places.fields}, step.constants)
        yield
        with torch.no_grad():
            template.step(template.random_action(generator))
    yield from late_states(template, step, generator, over)


def verify_gradient(template: VmasWorld, lowered: Lowered, step: KernelStep, kernel: GradientKernel) -> GradientReport:
    """Compares at many states. Raises Refusal if more than one comparison in 200 is outside of both sides."""
    check, generator = GradientCheck(template, lowered, step, kernel), torch.Generator().manual_seed(0)
    for _ in _states(template, step, generator, check.ended):
        action = {name: a.contiguous() for name, a in template.random_action(generator).items()}
        check.compare(action)
    report = check.report
    if report.astray > max(1, report.compared // ASTRAY):
        worst = report.facts()["worst"]
        raise Refusal(f"its gradients differ from differences of the step in {report.astray} of {report.compared} "
                      f"comparisons; the largest relative error at a smooth point is {worst:.1g}")
    return report
