"""Lowers a function of tensors [E, …] the way a step is lowered, and runs the program by its plain NumPy meaning."""

import numpy as np
import torch

from envs.kernel.ir.lowered_step import RULES
from envs.kernel.ir.lowering import Lowering
from envs.kernel.ir.program import evaluate
from envs.kernel.tracing.rewrite import Rewriter, location
from envs.kernel.tracing.tape import Recorder, Ref, Tape
from envs.kernel.tracing.trace import TRACED as E
from envs.vmas.env import VmasEnv


def lowered(function, *inputs):
    """(lowering, arrays of values of the results, the results as torch computed them)."""
    tape = Tape()
    for i, tensor in enumerate(inputs):
        tape.input(tensor, ("state", f"x{i}"))
    before = {f"x{i}": tensor.clone() for i, tensor in enumerate(inputs)}
    with torch.no_grad(), Recorder(tape, location), Rewriter(tape, E):
        results = function(*inputs)
        results = list(results) if isinstance(results, (tuple, list)) else [results]
    low = Lowering(tape, E, RULES)
    low.run()
    return low, [low.array(Ref(tape.add(r))) for r in results], [r.clone() for r in results], before


def compare(function, *inputs, tolerance=2e-6):
    """Asserts that the program computes what torch computed, in every environment."""
    low, arrays, expected, before = lowered(function, *inputs)
    sources = {}
    for op in low.program.ops:
        if op == ("input", ("environment",)):
            sources[op[1]] = np.arange(E)
        elif op[0] == "input":
            _, path, k = op[1]
            sources[op[1]] = before[path].reshape(E, -1)[:, k].numpy()
    for array, result in zip(arrays, expected, strict=True):
        flat = [int(v) for v in array.reshape(-1)]
        values = [np.broadcast_to(v, E) for v in evaluate(low.program, flat, sources)]
        ours = torch.tensor(np.stack(values, -1).astype(np.float32)) if values else torch.zeros(E, 0)
        theirs = result.reshape(E, -1).float()
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True)


def pair(num_envs=19, **settings):
    envs = [
        VmasEnv(num_envs=num_envs, max_steps=7, pool_every=5, seed=3, fast=f, **settings) for f in ("kernel", "off")
    ]
    for env in envs:
        env.reset(5)
    return envs


def assert_same(ours, theirs, tolerance=2e-4):
    def close(a, b):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)

    assert torch.equal(ours.terminated, theirs.terminated) and torch.equal(ours.truncated, theirs.truncated)
    for name in theirs.reward:
        close(ours.reward[name], theirs.reward[name])
        close(ours.observation[name], theirs.observation[name])
        close(ours.next_observation[name], theirs.next_observation[name])
        assert ours.info.keys() == theirs.info.keys() and ours.info[name].keys() == theirs.info[name].keys()
        for key, value in theirs.info[name].items():
            close(ours.info[name][key], value)
    if theirs.state is not None:
        close(ours.state, theirs.state)
        close(ours.next_state, theirs.next_state)
