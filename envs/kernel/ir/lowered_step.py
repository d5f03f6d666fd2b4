"""One environment's step as a scalar program: lowers a trace, and finds which state its outputs need."""

from dataclasses import dataclass

import numpy as np
import torch

from envs.kernel.ir import lower_functions, lower_index, lower_pointwise, lower_reduce, lower_shape
from envs.kernel.ir.lowering import Lowering, Rules
from envs.kernel.ir.program import Program
from envs.kernel.tracing.tape import Ref, Refusal
from envs.kernel.tracing.trace import TRACED, Trace

RULES = Rules()
for _module in (lower_functions, lower_index, lower_pointwise, lower_reduce, lower_shape):
    RULES.update(_module.RULES)


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


def lower(traced: Trace, specialise: bool = True) -> Lowered:
    """The program of a trace. Raises Refusal if an output needs what one environment can't compute alone.

    specialise: fold state that never changes into the program as constants. They are checked when a state is loaded.
    """
    low = Lowering(traced.tape, TRACED, RULES, traced.constants if specialise else None)
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
        if (
            traced.shapes[path][1] == torch.float64
            and path in after
            and p.ops[int(after[path].reshape(-1)[k])] != ("input", ("state", path, k))
        ):
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
