"""Traces one step of a VMAS environment: from state and actions to state, observations, rewards, dones and infos.

The step is the simulator's own, unmodified; it runs once, on a twin of the environment with `TRACED` copies, on real
values, and every tensor operation is written to a tape.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.kernel.audit import StepAudit, describe
from envs.kernel.cull import culling
from envs.kernel.lower import Lowering
from envs.kernel.program import Program
from envs.kernel.rewrite import SKIPPED, Rewriter, location
from envs.kernel.tape import ConstantChanged, Recorder, Ref, Refusal, Tape
from envs.state import like

TRACED = 127  # environments of the twin: a prime, so that no other size is a multiple of it


@dataclass
class Trace:
    """What a traced step reads and gives, as tensor numbers on its tape."""

    tape: Tape
    state: dict[str, int]  # path -> number after the step
    outputs: dict[tuple, int]  # ("observation", group) … -> number
    shapes: dict[str, tuple]  # path -> (shape, dtype, axis of the environments)
    constants: dict[tuple, float] = field(default_factory=dict)  # ("state", path, field) -> its only value
    unrolled: bool = False  # whether a rejection loop was unrolled or a masked selection drew for everyone
    branches: set[tuple[str, int]] = field(default_factory=set)  # conditions over the batch that were assumed true
    loops: set[tuple[str, int]] = field(default_factory=set)  # those of them that belong to loops
    selected: bool = False  # whether a masked selection was read


@dataclass
class Lowered:
    """One environment's step as a program: what it reads (fields, tables, actions, noise) and what it gives."""

    program: Program
    fields: list[tuple[str, int]]  # state carried from step to step: (path, element)
    next: list[int]  # value of each field after the step
    tables: dict[str, tuple[int, str]]  # path -> (value of the last store or -1, kind)
    outputs: dict[tuple, np.ndarray]  # ("observation", group) -> values [A, F]; ("terminated",) -> [] …
    constants: dict[tuple[str, int], float]  # state folded into the program: (path, element) -> value
    noise: list[tuple]  # (operation, arguments, keywords, traced shape, dtype) of each draw, in order
    shapes: dict[str, tuple]
    operations: int  # that the outputs need, constants and inputs not counted
    unrolled: bool
    dtypes: dict[tuple, torch.dtype]  # of the outputs
    branches: set[tuple[str, int]]
    loops: set[tuple[str, int]]


def trace(twin, audited: bool = True) -> Trace:
    """Records one step of `twin`, a VmasEnv of TRACED environments. Raises Refusal.

    audited: also watch what the step does beside tensors; False where that was seen before.
    """
    pool, sim = twin._pool, twin._simulator
    if sim.num_envs != TRACED:
        raise ValueError(f"the twin must have {TRACED} environments, not {sim.num_envs}")
    drawn = drawn_values(pool)
    aliases = _part(twin)
    set_drawn(pool, drawn)
    tape, shapes = Tape(), {}
    before: dict[str, tuple[Tensor, int]] = {}
    for path, slot in pool.main.tensors.items():
        value, axis = slot.value, pool.axes.get(path)
        if axis is not None:
            tape.input(value, ("state", path))
            before[path] = (value, value._version)
            shapes[path] = (tuple(value.shape), value.dtype, axis)
        elif path in pool._evolving:
            tape.input(value, ("shared", path))
    action = twin.random_action(torch.Generator().manual_seed(0))
    for name, value in action.items():
        tape.input(value, ("action", name))
    constants = _constants(twin, before)
    set_drawn(pool, drawn)
    outputs: dict[tuple, Tensor] = {}
    rewriter, audit = Rewriter(tape, TRACED), StepAudit()
    tensors = {path: slot.value for path, slot in pool.main.tensors.items()}
    shared = {path: (value, value._version, value.detach().clone()) for path, value in tensors.items()
              if pool.axes.get(path) is None and path not in pool._evolving}
    seen = audit.look(sim, pool.main) if audited else None
    with torch.no_grad(), pool.stream, culling(sim.world), audit.step() if audited else nullcontext():
        with Recorder(tape, location), rewriter, refusing(twin.scenario):
            handed = twin._hand_out(action)
            observations, rewards, terminated, over, infos = sim.step(handed)
            for name, value in twin._observe(sim, observations).items():
                outputs["observation", name] = value
            for name, group in twin._groups.items():
                outputs["reward", name] = group.reward(rewards)
                for key, value in group.info(infos).items():
                    outputs["info", name, key] = value
            outputs["terminated",] = terminated.clone()
            outputs["truncated",] = over & ~terminated
    pool.main.refresh()
    audit.compare(seen, audit.look(sim, pool.main) if audited else None, "a step")
    if audit.reason:
        raise Refusal(audit.reason)
    for path, (tensor, version, value) in shared.items():
        slot = pool.main.tensors.get(path)
        if slot is not None and (slot.value is not tensor or tensor._version != version) and \
                not (slot.value.shape == value.shape and torch.equal(slot.value, value)) and path not in pool._passing:
            raise Refusal(f"a step changes {describe(path, audit.codes)}, which all environments share")
    for name, group in twin.spec.groups.items():
        wanted = (TRACED, group.n_agents, group.observation_size)
        if tuple(outputs["observation", name].shape) != wanted:
            raise Refusal(f"the observation of {name} changes its width")
    state = {}
    for path, (tensor, version) in before.items():
        slot = pool.main.tensors.get(path)
        if slot is None:
            continue  # scratch that disappears
        if slot.value.shape != tensor.shape:
            raise Refusal(f"the step changes the shape of {path}")
        state[path] = tape.add(slot.value)
        if slot.value is not tensor or tensor._version != version:
            for k in range(tensor.numel() // TRACED):
                constants.pop(("state", path, k), None)
    for path, first in aliases.items():
        if path in state and first in state and pool.main.tensors[path].value is not pool.main.tensors[first].value:
            raise Refusal(f"{path} and {first} are one tensor in some steps and two in others")
    numbers = {key: tape.add(value) for key, value in outputs.items()}
    unrolled = bool(tape.noise) and (rewriter.looped or rewriter.selected)
    asked = rewriter.branches, rewriter.loops, rewriter.selected
    return Trace(tape, state, numbers, shapes, constants, unrolled, *asked)


@contextmanager
def refusing(scenario: str) -> Iterator[None]:
    """Whatever a scenario raises while it is traced is a reason to step it eagerly."""
    try:
        yield
    except (Refusal, ConstantChanged):
        raise
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(SKIPPED)]
        place = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
        lines = str(error).splitlines() or ["no message"]
        said = " ".join((lines[-1] if "Traceback" in str(error) else str(error)).split())[:200] or "no message"
        raise Refusal(f"tracing {scenario!r} raised {type(error).__name__}{place}: {said}") from error


def drawn_values(pool) -> dict[str, Any]:
    """What resets draw once for the whole batch, as plain values {path: value}: a kernel is built for one choice."""
    host, values = pool.main.host_values(), {}
    for path in sorted(pool.drawn):
        if path in pool.main.tensors:
            values[path] = pool.main.tensors[path].value.tolist()
        elif path in host:
            values[path] = host[path]
    return values


def set_drawn(pool, values: dict[str, Any]) -> None:
    """Puts back what `drawn_values` told."""
    pool.main.write_host({path: value for path, value in values.items() if path in pool.main.host})
    for path, value in values.items():
        slot = pool.main.tensors.get(path)
        if slot is not None and slot.value.tolist() != value:
            slot.write(torch.tensor(value, dtype=slot.value.dtype, device=slot.value.device))


def _part(twin) -> dict[str, str]:
    """Steps twice; slots that share a tensor after one step but not after the other get one each.

    Returns {path: first path} of those that always share.
    """
    pool, groups = twin._pool, []
    generator = torch.Generator().manual_seed(1)  # the caller's global generator stays as it is
    for _ in range(2):
        twin.step(twin.random_action(generator))
        pool.main.refresh()
        first: dict[int, str] = {}
        groups.append({p: first.setdefault(id(slot.value), p) for p, slot in pool.main.tensors.items()})
    for path, first in groups[1].items():
        if first != path and groups[0].get(path) != first:
            slot = pool.main.tensors[path]
            slot.write(like(slot.value, slot.value))
    return {path: first for path, first in groups[1].items() if first != path and groups[0].get(path) == first}


RESETS = 4


def _constants(twin, before: dict[str, tuple[Tensor, int]]) -> dict[tuple, float]:
    """State elements that hold one and the same value in every environment, now and after several resets."""
    pool, found = twin._pool, {}
    for path, (value, _) in before.items():
        found[path] = _rows(value, pool.axes[path])
        if path in pool.fresh.tensors:
            found[path] = torch.cat([found[path], _rows(pool.fresh.tensors[path].value, pool.axes[path])])
    for _ in range(RESETS):
        pool.refresh()
        for path in before:
            if path in pool.fresh.tensors:
                found[path] = torch.cat([found[path], _rows(pool.fresh.tensors[path].value, pool.axes[path])])
    constants = {}
    for path, rows in found.items():
        bits = rows.view(torch.int32) if rows.dtype == torch.float32 else rows
        same = (bits == bits[:1]).all(0).tolist()
        for k, value in enumerate(rows[0].tolist()):
            if same[k]:
                constants["state", path, k] = value
    return constants


def _rows(value: Tensor, axis: int) -> Tensor:
    """[E, elements] of a state tensor, elements in the order of the tensor without its environment axis."""
    return value.detach().movedim(axis, 0).reshape(value.shape[axis], -1).clone()


def lower(traced: Trace, specialise: bool = True) -> Lowered:
    """The program of a trace. Raises Refusal if an output needs what one environment can't compute alone.

    specialise: fold state that never changes into the program as constants; whoever loads a state checks them.
    """
    low = Lowering(traced.tape, TRACED, traced.constants if specialise else None)
    low.run()
    p = low.program
    outputs = {key: _squeeze(low, number) for key, number in traced.outputs.items()}
    after = {path: _state(low, traced, path, number) for path, number in traced.state.items()}
    shared = [v for v, op in enumerate(p.ops) if op[0] == "input" and op[1][0] == "shared"]
    stores = {path: table[0] for path, table in low.tables.items()}
    needed: dict[tuple[str, int], None] = {}
    reached: set[int] = set()
    todo = [int(v) for array in outputs.values() for v in array.reshape(-1)]
    while todo:  # what the outputs need, and what that needs of the step before
        fresh = [v for v in p.live(todo) if v not in reached]
        reached.update(fresh)
        todo = []
        for v in fresh:
            op = p.ops[v]
            if op[0] == "poison":
                raise Refusal(f"the step {_reason(op[1])}")
            if op[0] in ("load", "store") and stores.get(op[1], -1) >= 0 and stores[op[1]] not in reached:
                todo.append(stores[op[1]])
            if op[0] == "input" and op[1][0] == "cell":
                raise Refusal(f"the step reads all of {op[1][1]} after writing to it by index")
            if op[0] == "input" and op[1][0] == "environment":
                raise Refusal("the step uses the number of an environment")
            if op[0] == "input" and op[1][0] == "state" and op[1][1:] not in needed:
                path, k = op[1][1:]
                needed[path, k] = None
                if path in low.tables:
                    raise Refusal(f"the step reads {path} both by index and as a whole")
                todo.append(int(after[path].reshape(-1)[k]) if path in after else v)
    for v in shared:
        if v in reached:
            path = p.ops[v][1][1]
            raise Refusal(f"the step depends on a tensor that all environments share and that changes: {path}")
    fields = sorted(needed)
    for path, k in fields:
        if traced.shapes[path][1] == torch.float64 and path in after and \
                p.ops[int(after[path].reshape(-1)[k])] != ("input", ("state", path, k)):
            raise Refusal(f"the step changes {path}, which is float64; kernels count in float32")
    tables = {
        path: (table[0], low.kind(traced.shapes[path][1]))
        for path, table in low.tables.items()
        if any(p.ops[v][0] in ("load", "store") and p.ops[v][1] == path for v in reached)
    }
    noise = []
    for name, args, kwargs, value in traced.tape.noise:
        plain = [None if isinstance(a, Ref) else a for a in args]
        noise.append((name, plain, kwargs, tuple(value.shape), value.dtype))
    folded = {(path, k): float(v) for (_, path, k), v in (traced.constants if specialise else {}).items()}
    return Lowered(
        p,
        fields,
        [int(after[path].reshape(-1)[k]) for path, k in fields],
        tables,
        outputs,
        folded,
        noise,
        traced.shapes,
        sum(p.ops[v][0] not in ("const", "input") for v in reached),
        traced.unrolled,
        {key: traced.tape.tensors[n].dtype for key, n in traced.outputs.items()},
        traced.branches,
        traced.loops,
    )


def _reason(message: str) -> str:
    return f"needs what crosses environments or has no rule: {message}"


def _squeeze(low: Lowering, number: int) -> np.ndarray:
    """The array of an output [E, …] without the environment axis."""
    array = low.array(Ref(number))
    if not array.shape or array.shape[0] != 1 or not low.over_envs(low.tape.tensors[number].shape, 0):
        raise Refusal(f"an output has the shape {tuple(low.tape.tensors[number].shape)}")
    return array[0]


def _state(low: Lowering, traced: Trace, path: str, number: int) -> np.ndarray:
    array, axis = low.array(Ref(number)), traced.shapes[path][2]
    return np.moveaxis(array, axis, 0).reshape(-1)
