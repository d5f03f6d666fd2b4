"""Compares a kernel in use with the simulator of its very environment: at its start, and again and again in the run."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from envs.base import EnvError
from envs.kernel.compile import Compiled
from envs.kernel.tracing.tape import ConstantChanged, Refusal
from envs.kernel.tracing.trace import refusing
from envs.kernel.verification.audit import python_state
from envs.kernel.verification.verify import Comparison, Report
from envs.python_state.state import SIZE
from envs.vmas.scenario_errors import naming_errors
from envs.vmas.world import VmasWorld

STARTING = 2  # steps compared before a kernel's first use
SHARE = 0.01  # of the time that comparisons in a run may take


class Recheck:
    """When the kernel of `world` is compared with its simulator, and what came of it.

    checks: comparisons so far. due: whether the next step is to be compared.
    """

    def __init__(self, world: VmasWorld) -> None:
        self.world = world
        self.checks, self.due = 0, False
        self.spent, self._born = 0.0, time.perf_counter()  # seconds in comparisons, and when they began to count
        self._report = Report()  # of all comparisons in the run
        self._rollouts, self._steps = 0, 0  # rollouts begun, and steps outside of rollouts

    def at_start(self, compilation: Compiled, specialised: bool) -> str:
        """Two steps of the environment's own simulator and of the kernel; one sentence if they differ."""
        world = self.world
        comparison = Comparison(world, compilation.step(world.num_envs), compilation.unrolled)
        try:
            with world.pool.preserved():
                for _ in range(STARTING):
                    with refusing(world.scenario):
                        comparison.step(world.random_action(comparison.generator))
        except ConstantChanged as changed:
            return "" if specialised else str(changed)  # the first load asks for a kernel without constants
        except Refusal as refusal:
            return str(refusal)
        self.checks += 1
        difference = comparison.difference()
        return difference and f"{difference}, with {world.num_envs} environments; does the step use their number?"

    def count(self, rollout: bool) -> None:
        """Makes a comparison due on the 1st, 10th, 100th … rollout, or as many hundred steps outside of rollouts."""
        if rollout:
            self._rollouts += 1
            self.due |= _is_power_of_ten(self._rollouts)
        else:
            self._steps += 1
            self.due |= self._steps % 100 == 0 and _is_power_of_ten(self._steps // 100)

    @property
    def due_next(self) -> bool:
        """Whether the next rollout begins with a comparison."""
        return _is_power_of_ten(self._rollouts + 1)

    def affordable(self) -> bool:
        """Whether comparisons stay below a hundredth of the time since the start; the first is always made."""
        return self.spent <= SHARE * (time.perf_counter() - self._born)

    def in_run(self, compilation: Compiled, action: dict[str, Tensor]) -> None:
        """The step that is due, from the run's own state, which lies in the simulator, by both.

        One environment may flip by rounding: what differs is compared again at the next step, and counted on.
        Raises EnvError if they differ.
        """
        start = time.perf_counter()
        world, before = self.world, self._report.astray
        comparison = Comparison(world, compilation.step(world.num_envs), compilation.unrolled, self._report)
        try:
            with world.pool.preserved(), naming_errors(world.scenario, world.ticks + 1):
                comparison.step(action)
        except AssertionError:
            return  # about the action, of which the kernel's own step will tell; the comparison stays due
        self.due = self._report.astray > before
        self.checks += 1
        self.spent += time.perf_counter() - start
        if difference := comparison.difference():
            raise EnvError(
                f"scenario {world.scenario!r} has changed since its kernel was built: {difference}. "
                "resume=RUN_DIR env.fast=off continues the run."
            )


def _is_power_of_ten(number: int) -> bool:
    while number > 1 and number % 10 == 0:
        number //= 10
    return number == 1


def watched(world: VmasWorld, left_out: set[str]) -> dict[str, Any]:
    """{path: token} of what may be changed while a kernel steps `world`, apart from the paths left out."""
    pool = world.pool
    tokens = {
        path: token
        for path, token in python_state(world.simulator, pool.main).tokens.items()
        if path not in left_out and not path.endswith(SIZE)
    }
    for path, slot in pool.main.tensors.items():
        if pool.axes.get(path) is None and path not in pool.drawn | pool.evolving | pool.passing:
            tokens[path] = (tuple(slot.value.shape), slot.value.tolist())
    return tokens
