"""Compares branches over the batch both ways: a kernel takes `if condition.any():` always, the simulator if it is true.

`condition.any()` asks all environments at once, and a kernel has only one. Taking the branch is right where what
follows is masked, and wrong for `if near.any(): return 1.0`. So the simulator steps batches of equal environments, in
which the condition is false for all, once as it is and once with the branch taken: the results must be equal.
"""

from pathlib import Path

import torch
from torch import Tensor

from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.tracing.rewrite import TRIES, TruthRecorder
from envs.kernel.tracing.tape import Refusal
from envs.kernel.tracing.trace import Trace, refusing, reset_as_drawn
from envs.kernel.verification.reach import late_states
from envs.kernel.verification.verify import Comparison, eager_step, file_of
from envs.vmas import patches as vmas_patches
from envs.vmas.simulator_state import copies
from envs.vmas.world import VmasWorld

BATCHES = 32  # tried to see every condition false
SPREADS = (1.0, 4.0, 0.2, 1.0, 12.0)  # factors on positions, batch by batch: as reset, far apart, squeezed
TOLERANCE = 1e-4  # of a number's size, at least 1


def check_branches(template: VmasWorld, traced: Trace) -> None:
    """Raises Refusal, naming file and line, for a branch that changes something where its condition is false.

    Likewise for a condition that was never seen false, and for a loop that comes near to the rounds of a trace. VMAS's
    own physics is trusted: its branches are culling shortcuts.
    """
    conditions = {place for place in traced.branches | traced.loops if not _is_physics(place[0])}
    if not conditions and (not traced.selected or is_own(template)):
        return
    if traced.unrolled and is_own(template):  # VMAS's rejection loops; of other scenarios nothing is taken on trust
        return
    generator, unseen = torch.Generator().manual_seed(0), conditions - traced.loops
    for batch in range(BATCHES):
        if not unseen and batch >= len(SPREADS):
            break
        _equal_environments(template, generator, batch)
        for _ in range(2):
            unseen -= _both_ways(template, generator, conditions, traced.loops)
    if unseen:
        raise Refusal(
            f"the step branches on all environments at {_place(min(unseen))}, and was never seen to take the other way"
        )


def check_late_branches(template: VmasWorld, traced: Trace, kernel: KernelStep) -> None:
    """The same where episodes are old: the kernel reaches such states, and every environment gets one of them.

    Raises Refusal.
    """
    conditions = {place for place in traced.branches | traced.loops if not _is_physics(place[0])}
    if not conditions or (traced.unrolled and is_own(template)):
        return
    comparison = Comparison(template, kernel, False)
    for _ in late_states(template, kernel, comparison.generator, comparison.over):
        _equalize(template, comparison.generator)
        _both_ways(template, comparison.generator, conditions, traced.loops)


def is_own(template: VmasWorld) -> bool:
    """Whether a scenario is one of VMAS's, every class of it."""
    classes = type(template.simulator.scenario).__mro__
    return all(cls.__module__.startswith(("vmas.", "abc", "builtins")) for cls in classes)


def _is_physics(file: str) -> bool:
    return "/vmas/simulator/" in file or Path(file) == Path(vmas_patches.__file__)


def _place(place: tuple[str, int]) -> str:
    return f"{place[0].rpartition('/')[2]}:{place[1]}"


def _equal_environments(template: VmasWorld, generator: torch.Generator, batch: int) -> None:
    """A reset whose environments all are as one of them is, its bodies spread; every third is at its time limit."""
    reset_as_drawn(template)
    _equalize(template, generator, SPREADS[batch % len(SPREADS)], batch % 3 == 2)


def _equalize(template: VmasWorld, generator: torch.Generator, spread: float = 1.0, at_limit: bool = False) -> None:
    """Gives every environment the state of one of them."""
    pool = template.pool
    row = int(torch.randint(template.num_envs, (), generator=generator))
    written: dict[int, Tensor] = {}  # slots that hold one tensor hold one afterwards
    kept_alive = []
    for path, slot in pool.main.tensors.items():
        axis, value = pool.axes.get(path), slot.value
        if axis is None:
            continue
        if id(value) not in written:
            kept_alive.append(value)
            one = value.narrow(axis, row, 1)
            if path.endswith("_state._pos"):
                one = one * spread
            if path == "steps" and template.spec.max_steps is not None and at_limit:
                one = torch.full_like(one, float(template.spec.max_steps - 1))
            written[id(value)] = one.expand_as(value).clone()
        slot.write(written[id(value)])


def _both_ways(template: VmasWorld, generator: torch.Generator, conditions: set, loops: set) -> set[tuple[str, int]]:
    """One step as it is and one with every branch taken, from the same state; the conditions that were false."""
    pool, truths = template.pool, TruthRecorder()
    row = template.random_action(generator)
    action = {name: value[:1].expand_as(value).contiguous() for name, value in row.items()}
    saved = copies(pool.main.tensors)
    with refusing(template.scenario), pool.stream:
        before = torch.get_rng_state()
        forced = eager_step(template, action, True) | _states(pool)
        drawn = torch.get_rng_state()
        for path, value in saved.items():
            if path in pool.main.tensors:
                pool.main.tensors[path].write(value)
        torch.set_rng_state(before)
        natural = eager_step(template, action, False, truths) | _states(pool)
        same_draws = torch.equal(drawn, torch.get_rng_state())
    for place, rounds in truths.rounds.items():
        if place in loops and rounds > TRIES // 2:
            raise Refusal(f"a loop took {rounds} rounds at {_place(place)}, too near to the {TRIES} of a kernel")
    if not same_draws:
        where = f"near {_place(min(conditions))}" if conditions else f"in {file_of(template)}"
        raise Refusal(f"the step draws another number of times where a condition is false, {where}")
    for key, value in natural.items():
        a, b = forced.get(key), value
        if a is None or a.shape != b.shape or not _equal(a, b):
            false = sorted(truths.false & conditions) or sorted(conditions)
            where = f"at {_place(false[0])}" if false else f"by a selection in {file_of(template)}"
            raise Refusal(f"the step branches on all environments {where}, which changes {_name(key)}")
    return truths.false


def _states(pool) -> dict[tuple, Tensor]:
    return {
        ("state", path): slot.value.detach().clone()
        for path, slot in pool.main.tensors.items()
        if pool.axes.get(path) is not None
    }


def _equal(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def _name(key: tuple) -> str:
    return " ".join(part for part in key if part)
