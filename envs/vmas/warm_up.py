"""A simulator's first steps: every lazily made tensor comes to exist, and it shows what steps change."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from envs.rng import Stream
from envs.vmas.simulator import Simulator
from envs.vmas.simulator_state import StateMap, copies

STEPS = 3  # after which all lazily made tensors exist, and what changes by stepping has changed


@dataclass
class Warmed:
    """What the first steps showed, as paths of the simulator's state."""

    evolving: set[str]  # plain values and tensors that steps change
    moving: set[str]  # tensors whose container steps replace
    passing: set[str]  # tensors that a reset makes disappear: scratch that a step fills before it reads it


def warm_up(simulator: Simulator, state: StateMap, stream: Stream, audit: Any = None) -> Warmed:
    """Steps a few times, puts back what was there before, and resets.

    audit: an `envs.kernel.verification.audit.StepAudit` that looks on, or None.
    """
    before = copies(state.tensors)
    host, arrays = state.host_values(), {path: slot.value.copy() for path, slot in state.arrays.items()}

    def steps(count: int) -> None:
        for _ in range(count):
            with stream, audit.step(calls=count == 1) if audit else nullcontext():
                simulator.step(simulator.get_random_actions())
        state.refresh()

    looks = [audit.look(simulator, state)] if audit else []
    steps(1)
    looks += [audit.look(simulator, state)] if audit else []
    early = {path: id(slot.container) for path, slot in state.tensors.items()}
    early_host = state.host_values()
    shared = {path: slot.value.clone() for path, slot in state.tensors.items()}
    steps(STEPS)
    if audit:
        audit.compare(looks[0], looks[1], "a step", first=True)
        audit.compare(looks[1], audit.look(simulator, state), "a step")
    late_host = state.host_values()
    moving = {p for p, slot in state.tensors.items() if early.get(p, id(slot.container)) != id(slot.container)}
    evolving = {p for p in late_host if late_host[p] != early_host.get(p) or late_host[p] != host.get(p)}
    evolving |= {p for p, slot in state.tensors.items() if p in shared and not equal(shared[p], slot.value)}
    evolving |= {p for p, slot in state.arrays.items() if not equal_arrays(arrays.get(p), slot.value)}
    stepped = set(state.tensors)
    for path, value in before.items():
        if path in state.tensors:
            state.tensors[path].write(value)
    for path, array in arrays.items():
        slot = state.arrays.get(path)
        if slot is not None and not equal_arrays(array, slot.value):
            slot.write(array)
    state.write_host(host)
    with stream:
        simulator.reset()
    state.refresh()
    passing = {p for p in stepped - state.tensors.keys() if p not in state.host}
    return Warmed(evolving, moving, passing)


def equal_arrays(a: Any, b: Any) -> bool:
    """Whether two arrays are equal to the last bit, or one is missing as the other is."""
    return (
        a is not None
        and a.shape == b.shape
        and a.dtype == b.dtype
        and (a.dtype == object or a.tobytes() == b.tobytes())
    )


def shared_values(state: StateMap, axes: dict[str, int | None]) -> dict[str, Any]:
    """{path: value} of what all environments share: plain values and tensors without an environment axis."""
    tensors = {path: slot.value.clone() for path, slot in state.tensors.items() if axes.get(path) is None}
    return {**tensors, **state.host_values()}


def is_clock(value: Any) -> bool:
    """Whether a plain value is the time of day: road_traffic notes when it was reset."""
    return isinstance(value, float) and abs(value - time.time()) < 3600.0


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and a == b
