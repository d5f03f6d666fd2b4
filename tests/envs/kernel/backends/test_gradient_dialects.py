"""Gradient programs in C++, CUDA (its text compiled as C++) and JavaScript give the same numbers, however they are cut."""

import numpy as np
import pytest
import torch

from envs.kernel.backends import cpp_gradient
from envs.kernel.backends.cpp_gradient import emit_gradient
from envs.kernel.backends.cuda.emulation import emulated
from envs.kernel.backends.cuda.gradient import emit_cuda_gradient
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.backends.javascript_gradient import emit_js_gradient
from envs.kernel.ir.gradient import TABLE, differentiate
from envs.kernel.ir.gradient_layout import GradientLayout, gradient_layout
from envs.kernel.ir.layout import layout
from envs.kernel.ir.lowered_step import Lowered, lower
from envs.kernel.ir.program import Program
from envs.kernel.tracing.trace import TRACED, trace
from envs.vmas.world import VmasWorld
from marl.native.compiler import compile_library, load

ENVS = 37  # no whole number of vectors


def made(scenario: str):
    """(gradient, where everything lies) of a scenario's step."""
    template = VmasWorld(scenario, num_envs=TRACED, pool_size=64)
    lowered = lower(trace(template, audited=False))
    gradient = differentiate(lowered)
    return gradient, gradient_layout(gradient, layout(lowered, template.spec))


def with_a_table():
    """x' = t[i] read before t[i] = x * y is written, y' = t[j] ** 2 read after; a bool picks, an arm is costly."""
    p = Program()
    x, y = p.input(("state", "x", 0), "f"), p.input(("state", "y", 0), "f")
    i, j = p.const(1, "i"), p.input(("state", "j", 0), "i")
    near = p.op("lt", x, p.const(0.0, "f"))
    arm = y
    for _ in range(4):
        arm = p.op("sin", p.op("mul", arm, x))  # costly enough for a block of its own
    before = p.memory("load", "f", "t", -1, i)
    stored = p.memory("store", "f", "t", -1, i, p.op("mul", x, p.op("select", near, arm, y)), before)
    after = p.memory("load", "f", "t", stored, j)
    fields = [("x", 0), ("y", 0), ("j", 0)]
    lowered = Lowered(
        p,
        fields,
        [before, p.op("mul", after, after), j],
        {"t": (stored, "f")},
        {},
        {},
        [],
        {},
        0,
        False,
        {},
        set(),
        set(),
    )
    gradient = differentiate(lowered)
    return gradient, GradientLayout(fields, [("t", 3, "f"), (TABLE + "t", 3, "f")], [], 0, [], [])


def given(places: GradientLayout, padded: int) -> dict[tuple, torch.Tensor]:
    """Random numbers for all that a gradient kernel reads; every third environment was restarted."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    state, after = (torch.zeros(len(places.fields), padded) for _ in range(2))
    for place in (state, after):
        place[:, :ENVS] = random(len(places.fields), ENVS)
    for k, (path, _) in enumerate(places.fields):
        if path == "j":
            state[k, :ENVS] = torch.arange(ENVS) % 3
    found = {
        ("state",): state,
        ("gradient", "state"): after,
        ("noise",): random(ENVS, max(places.noise, 1)),
        ("over",): torch.arange(ENVS) % 3 == 0,
    }
    found |= {("table", path): random(ENVS, count) for path, count, _ in places.tables}
    found |= {("action", group): random(ENVS, count) for group, count, _ in places.actions}
    found |= {("gradient", *key): random(ENVS, count) for key, count in places.outputs}
    return found | {("gradient", "after", *key): random(ENVS, dict(places.outputs)[key]) for key in places.restarted}


def results(sources: list[str], places: GradientLayout) -> dict[str, np.ndarray]:
    """What a kernel gives: gradients of the state [fields, E], of each group's actions, and its tables."""
    source, *more = sources
    kernel = GradientKernel(load(compile_library(source, more=more)), places, ENVS)
    numbers = given(places, kernel.padded)
    actions = kernel(numbers)
    found = {"state": numbers["gradient", "state"][:, :ENVS], **{f"action of {g}": a for g, a in actions.items()}}
    found |= {path: numbers["table", path] for path, _, _ in places.tables}
    return {name: tensor.numpy() for name, tensor in found.items()}


def assert_close(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], by: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, numbers in theirs.items():
        assert np.isfinite(numbers).all() and (name == "j" or np.abs(numbers).max() > 0)
        np.testing.assert_allclose(ours[name], numbers, rtol=by, atol=by, err_msg=name)


CASES = {
    "a table": with_a_table,
    "mpe/simple_spread": lambda: made("mpe/simple_spread"),
    "balance": lambda: made("balance"),
}


@pytest.mark.parametrize("case", CASES)
def test_cuda_gives_what_the_cpu_gives(case: str) -> None:
    gradient, places = CASES[case]()
    cuda = emulated(emit_cuda_gradient(gradient, places))
    assert_close(results([cuda], places), results(emit_gradient(gradient, places), places), 2e-5)


@pytest.mark.parametrize("case", CASES)
def test_javascript_gives_what_the_cpu_gives(case: str, javascript) -> None:
    gradient, places = CASES[case]()
    numbers = given(places, ENVS)
    tables = [numbers["table", path] for path, _, _ in places.tables]
    rows = [numbers["state",], numbers["gradient", "state"]]
    coming = []
    for key, _ in places.outputs:
        row = numbers["gradient", *key].clone()
        if key in places.restarted:
            row += numbers["gradient", "after", *key] * ~numbers["over",].unsqueeze(1)
        coming.append(row)
    sent = {
        "x": rows[0].T,
        "s": rows[1].T,
        "z": numbers["noise",],
        "y": torch.cat(coming, 1) if coming else torch.zeros(ENVS, 1),
        "over": numbers["over",].float(),
    }
    sent |= {f"a{k}": numbers["action", group] for k, (group, _, _) in enumerate(places.actions)}
    sent |= {f"T{k}": table for k, table in enumerate(tables)}
    actions = sum(count for _, count, _ in places.actions)
    lines = [
        f"const gradient = {emit_js_gradient(gradient, places)};",
        "const found = {s: [], o: [], T: []};",
        f"const part = (a, e) => a.slice(e * a.length / {ENVS}, (e + 1) * a.length / {ENVS});",
        f"for (let e = 0; e < {ENVS}; e++) {{",
        f"  const mine = part(s, e), o = new Float32Array({max(actions, 1)});",
        f"  const T = [{', '.join(f'part(T{k}, e)' for k in range(len(tables)))}];",
        f"  const a = {{{', '.join(f'${k}: part(a{k}, e)' for k in range(len(places.actions)))}}};",
        "  gradient(mine, part(x, e), a, part(z, e), T, part(y, e), over[e] !== 0, o);",
        "  found.s.push([...mine]); found.o.push([...o]); found.T.push(T.map(t => [...t]));",
        "}",
        "return found;",
    ]
    found = javascript("\n".join(lines), **{name: value.numpy() for name, value in sent.items()})
    ours, start = {"state": np.array(found["s"]).T}, 0
    for group, count, _ in places.actions:
        ours[f"action of {group}"] = np.array(found["o"])[:, start : start + count]
        start += count
    ours |= {path: np.array([T[k] for T in found["T"]]) for k, (path, _, _) in enumerate(places.tables)}
    assert_close(ours, results(emit_gradient(gradient, places), places), 2e-5)


@pytest.mark.parametrize(("case", "length"), [("a table", 7), ("mpe/simple_spread", 90)])
def test_however_a_program_is_cut_its_numbers_stay_bitwise(case: str, length: int, monkeypatch) -> None:
    """Into functions of a few statements, and those into units of their own."""
    gradient, places = CASES[case]()
    whole = results(emit_gradient(gradient, places), places)
    monkeypatch.setattr(cpp_gradient, "PART", length)
    monkeypatch.setattr(cpp_gradient, "UNIT", 2)
    cut = emit_gradient(gradient, places)
    assert len(cut) > 2
    for name, numbers in results(cut, places).items():
        np.testing.assert_array_equal(numbers, whole[name], err_msg=name)
