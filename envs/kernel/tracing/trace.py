"""Traces one step of a VMAS environment: from state and actions to state, observations, rewards, dones and infos.

The step is the simulator's own, unmodified. It runs once, in a template world of `TRACED` environments, on real values,
and every tensor operation is written to a tape.
"""

import hashlib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from envs.kernel.tracing.culling import culling
from envs.kernel.tracing.rewrite import SKIPPED, Rewriter, location
from envs.kernel.tracing.tape import ConstantChanged, Recorder, Refusal, Tape
from envs.kernel.verification.audit import StepAudit, describe
from envs.vmas.simulator_state import like
from envs.vmas.world import VmasWorld

TRACED = 127  # environments of the template: a prime, so that no other size is a multiple of it


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

    def fingerprint(self) -> str:
        """Everything that decides what the trace is lowered to: traces of one fingerprint have one program."""
        tape = self.tape
        nodes = [(node.name, node.args, node.kwargs, node.outs, node.where) for node in tape.nodes]
        tensors = [(tuple(t.shape), t.stride(), t.storage_offset(), t.dtype) for t in tape.tensors]
        memory = list(tape.storages.values())
        constants = [(n, value.detach().cpu().numpy().tobytes()) for n, value in tape.consts.items()]
        draws = [(name, args, kwargs, value.shape) for name, args, kwargs, value in tape.noise]
        rest = tape.aliases, tape.inputs, self.state, self.outputs, self.shapes, self.constants
        return hashlib.sha256(repr((nodes, tensors, memory, constants, draws, rest)).encode()).hexdigest()


def trace(template: VmasWorld, audited: bool = True) -> Trace:
    """Records one step of `template`, a world of TRACED environments. Raises Refusal.

    audited: also watch what the step does beside tensors; False where that was seen before.
    """
    pool, sim = template.pool, template.simulator
    if sim.num_envs != TRACED:
        raise ValueError(f"the template must have {TRACED} environments, not {sim.num_envs}")
    drawn = drawn_values(pool)
    aliases = _part(template)
    set_drawn(pool, drawn)
    tape, shapes = Tape(), {}
    before: dict[str, tuple[Tensor, int]] = {}
    for path, slot in pool.main.tensors.items():
        value, axis = slot.value, pool.axes.get(path)
        if axis is not None:
            tape.input(value, ("state", path))
            before[path] = (value, value._version)
            shapes[path] = (tuple(value.shape), value.dtype, axis)
        elif path in pool.evolving:
            tape.input(value, ("shared", path))
    action = template.random_action(torch.Generator().manual_seed(0))
    for name, value in action.items():
        tape.input(value, ("action", name))
    constants = _constants(template, before)
    set_drawn(pool, drawn)
    outputs: dict[tuple, Tensor] = {}
    rewriter, audit = Rewriter(tape, TRACED), StepAudit()
    tensors = {path: slot.value for path, slot in pool.main.tensors.items()}
    shared = {
        path: (value, value._version, value.detach().clone())
        for path, value in tensors.items()
        if pool.axes.get(path) is None and path not in pool.evolving
    }
    state_before = audit.look(sim, pool.main) if audited else None
    with torch.no_grad(), pool.stream, culling(sim.world), audit.step() if audited else nullcontext():
        with Recorder(tape, location), rewriter, refusing(template.scenario):
            handed = template.split_actions(action)
            observations, rewards, terminated, over, infos = sim.step(handed)
            for name, value in template.observe(sim, observations).items():
                outputs["observation", name] = value
            for name, group in template.groups.items():
                outputs["reward", name] = group.reward(rewards)
                for key, value in group.info(infos).items():
                    outputs["info", name, key] = value
            outputs["terminated",] = terminated.clone()
            outputs["truncated",] = over & ~terminated
    pool.main.refresh()
    audit.compare(state_before, audit.look(sim, pool.main) if audited else None, "a step")
    if audit.reason:
        raise Refusal(audit.reason)
    for path, (tensor, version, value) in shared.items():
        slot = pool.main.tensors.get(path)
        if (
            slot is not None
            and (slot.value is not tensor or tensor._version != version)
            and not (slot.value.shape == value.shape and torch.equal(slot.value, value))
            and path not in pool.passing
        ):
            raise Refusal(f"a step changes {describe(path, audit.codes)}, which all environments share")
    for name, group in template.spec.groups.items():
        shape = (TRACED, group.n_agents, group.observation_size)
        if tuple(outputs["observation", name].shape) != shape:
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
    decisions = rewriter.branches, rewriter.loops, rewriter.selected
    return Trace(tape, state, numbers, shapes, constants, unrolled, *decisions)


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
        message = " ".join((lines[-1] if "Traceback" in str(error) else str(error)).split())[:200] or "no message"
        raise Refusal(f"tracing {scenario!r} raised {type(error).__name__}{place}: {message}") from error


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
    """Puts back what `drawn_values` gave."""
    pool.main.write_host({path: value for path, value in values.items() if path in pool.main.host})
    for path, value in values.items():
        slot = pool.main.tensors.get(path)
        if slot is not None and slot.value.tolist() != value:
            slot.write(like(slot.value, torch.tensor(value, dtype=slot.value.dtype, device=slot.value.device)))


def reset_as_drawn(world: VmasWorld) -> None:
    """Resets the simulator; what is drawn once for the whole batch stays, since a kernel is built for one choice."""
    drawn = drawn_values(world.pool)
    with world.pool.stream:
        world.simulator.reset()
    world.pool.main.refresh()
    set_drawn(world.pool, drawn)


def _part(template: VmasWorld) -> dict[str, str]:
    """Steps twice; slots that share a tensor after one step but not after the other get one each.

    Returns {path: first path} of those that always share.
    """
    pool, groups = template.pool, []
    generator = torch.Generator().manual_seed(1)  # the caller's global generator stays as it is
    for _ in range(2):
        template.step(template.random_action(generator))
        pool.main.refresh()
        first: dict[int, str] = {}
        groups.append({p: first.setdefault(id(slot.value), p) for p, slot in pool.main.tensors.items()})
    for path, first in groups[1].items():
        if first != path and groups[0].get(path) != first:
            slot = pool.main.tensors[path]
            slot.write(like(slot.value, slot.value))
    return {path: first for path, first in groups[1].items() if first != path and groups[0].get(path) == first}


RESETS = 4


def _constants(template: VmasWorld, before: dict[str, tuple[Tensor, int]]) -> dict[tuple, float]:
    """State elements that hold one and the same value in every environment, now and after several resets."""
    pool, samples = template.pool, {}
    for path, (value, _) in before.items():
        samples[path] = _rows(value, pool.axes[path])
        if path in pool.fresh.tensors:
            samples[path] = torch.cat([samples[path], _rows(pool.fresh.tensors[path].value, pool.axes[path])])
    for _ in range(RESETS):
        pool.refresh()
        for path in before:
            if path in pool.fresh.tensors:
                samples[path] = torch.cat([samples[path], _rows(pool.fresh.tensors[path].value, pool.axes[path])])
    constants = {}
    for path, rows in samples.items():
        bits = rows.view(torch.int32) if rows.dtype == torch.float32 else rows
        same = (bits == bits[:1]).all(0).tolist()
        for k, value in enumerate(rows[0].tolist()):
            if same[k]:
                constants["state", path, k] = value
    return constants


def _rows(value: Tensor, axis: int) -> Tensor:
    """[E, elements] of a state tensor, elements in the order of the tensor without its environment axis."""
    return value.detach().movedim(axis, 0).reshape(value.shape[axis], -1).clone()
