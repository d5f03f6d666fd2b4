"""Reverse mode on programs of a few operations: arms of selects, tables, what carries none, what has no rule."""

import numpy as np
import pytest
import torch

from envs.kernel.ir.gradient import TABLE, Gradient, differentiate
from envs.kernel.ir.lowered_step import Lowered
from envs.kernel.ir.program import OPERATIONS, Program
from envs.kernel.tracing.tape import Refusal
from envs.kernel.verification.differences import evaluate_double


def step(program: Program, after: dict[str, int], tables: dict[str, tuple[int, str]] | None = None) -> Lowered:
    """A step whose state is one number per name, with the values that they have after it."""
    fields = [(name, 0) for name in after]
    return Lowered(program, fields, list(after.values()), tables or {}, {}, {}, [], {}, 0, False, {}, set(), set())


def gradients(gradient: Gradient, at: dict[str, list[float]], of: dict[str, float], tables=None) -> dict[str, list]:
    """{name: gradient of the state at these points}, given the gradients of the next state."""
    names = [name for name, _ in gradient.lowered.fields]
    size = len(next(iter(at.values())))
    inputs = {("state", name, 0): np.array(at[name]) for name in names}
    inputs |= {("gradient", "state", name, 0): np.full(size, of.get(name, 0.0)) for name in names}
    values = evaluate_double(
        gradient.lowered.program, [v for v in gradient.state if v is not None], inputs, tables or {}
    )
    found = iter([np.broadcast_to(v, size).tolist() for v in values])
    return {name: next(found) if v is not None else None for name, v in zip(names, gradient.state, strict=True)}


def test_sums_products_and_what_is_handed_on_unchanged():
    p = Program()
    x, y = p.input(("state", "x", 0), "f"), p.input(("state", "y", 0), "f")
    gradient = differentiate(step(p, {"x": p.op("mul", x, y), "y": y}))
    assert gradients(gradient, {"x": [3.0], "y": [5.0]}, {"x": 2.0, "y": 1.0}) == {"x": [10.0], "y": [7.0]}


def test_an_arm_that_is_not_taken_hands_nothing_on_whatever_it_holds():
    p = Program()
    x, y = p.input(("state", "x", 0), "f"), p.input(("state", "y", 0), "f")
    far = p.op("lt", p.const(0.0, "f"), x)
    arm = p.op("div", y, p.op("sqrt", x))  # nan and infinities where x <= 0
    for _ in range(4):
        arm = p.op("exp", arm)  # costly enough for a block of its own
    gradient = differentiate(step(p, {"x": p.op("select", far, arm, y), "y": p.op("select", far, y, x)}))
    found = gradients(gradient, {"x": [0.0, -1.0, 4.0], "y": [3.0, 3.0, -20.0]}, {"x": 1.0, "y": 1.0})
    inputs = [
        torch.tensor([4.0], dtype=torch.double, requires_grad=True),
        torch.tensor([-20.0], dtype=torch.double, requires_grad=True),
    ]
    nested = inputs[1] / inputs[0].sqrt()
    for _ in range(4):
        nested = nested.exp()
    expected = [g.item() for g in torch.autograd.grad((nested + inputs[1]).sum(), inputs)]
    assert found["x"][:2] == [1.0, 1.0] and found["y"][:2] == [1.0, 1.0]
    assert np.isfinite(found["x"]).all()
    np.testing.assert_allclose([found["x"][2], found["y"][2]], expected)


def test_arms_within_arms_give_the_same_however_many_are_lazy(monkeypatch):
    """Five arms, each read in the next alone and nan where it is not taken: masked on every way out, or on the way in."""
    points, sizes = [-1.0, 0.5, 1.5, 2.5, 3.5, 4.5, 6.0], []
    for nested in (0, 1, 3, 10):
        monkeypatch.setattr("envs.kernel.ir.gradient.NESTED", nested)
        p = Program()
        x, v = p.input(("state", "x", 0), "f"), p.input(("state", "y", 0), "f")
        for k in (1.0, 2.0, 3.0, 4.0, 5.0):
            limit = p.const(k, "f")
            arm = p.op("mul", v, p.op("sqrt", p.op("sub", limit, x)))
            v = p.op("select", p.op("lt", x, limit), p.op("sin", p.op("exp", arm)), x)
        gradient = differentiate(step(p, {"x": v, "y": x}))
        found = gradients(gradient, {"x": points, "y": [0.3] * 7}, {"x": 1.0})
        inputs = [torch.tensor(a, dtype=torch.double, requires_grad=True) for a in (points, [0.3] * 7)]
        value = inputs[1]
        for k in (1.0, 2.0, 3.0, 4.0, 5.0):
            inside = inputs[0] < k
            arm = torch.sin(torch.exp(value * torch.where(inside, k - inputs[0], 1.0).sqrt()))
            value = torch.where(inside, arm, inputs[0])
        for name, expected in zip("xy", torch.autograd.grad(value.sum(), inputs), strict=True):
            np.testing.assert_allclose(found[name], expected, rtol=1e-12)
        sizes.append(sum(p.ops[v][0] == "select" for v in p.live(gradient.results)))
    assert sizes[1] < sizes[2] < sizes[3]


def test_whole_numbers_and_truth_values_carry_none():
    p = Program()
    x, n, b = p.input(("state", "x", 0), "f"), p.input(("state", "n", 0), "i"), p.input(("state", "b", 0), "b")
    after = p.op("select", b, p.op("mul", x, p._add("f", ("same", n))), x)
    gradient = differentiate(step(p, {"x": after, "n": n, "b": b}))
    assert gradient.state[1:] == [None, None]
    names = {"x": [2.0, 2.0], "n": [3.0, 3.0], "b": np.array([True, False])}
    assert gradients(gradient, names, {"x": 1.0})["x"] == [3.0, 1.0]


def test_tables_have_tables_of_gradients():
    """x' = t[i] read before t[i] = x * y is written, y' = t[j] read after: as torch's indexing has it."""
    p = Program()
    x, y = p.input(("state", "x", 0), "f"), p.input(("state", "y", 0), "f")
    i, j = p.const(1, "i"), p.input(("state", "j", 0), "i")
    before = p.memory("load", "f", "t", -1, i)
    stored = p.memory("store", "f", "t", -1, i, p.op("mul", x, y), before)
    after = p.memory("load", "f", "t", stored, j)
    gradient = differentiate(step(p, {"x": before, "y": p.op("mul", after, after), "j": j}, {"t": (stored, "f")}))
    table = torch.tensor([[1.0, 2.0, 3.0]] * 2, dtype=torch.double, requires_grad=True)
    a, b = (torch.tensor([v] * 2, dtype=torch.double, requires_grad=True) for v in (4.0, 5.0))
    row = table.clone()
    first = row[:, 1].clone()
    row[:, 1] = a * b
    last = row[[0, 1], [1, 2]]
    coming = torch.tensor([[0.1, 0.2, 0.3]] * 2, dtype=torch.double)
    total = (first * 2.0 + last * last * 3.0).sum() + (row * coming).sum()
    expected = torch.autograd.grad(total, [a, b, table])
    tables = {"t": table.detach().numpy(), TABLE + "t": coming.numpy()}
    points = {"x": [4.0, 4.0], "y": [5.0, 5.0], "j": [1.0, 2.0]}
    found = gradients(gradient, points, {"x": 2.0, "y": 3.0}, tables)
    assert found["x"] == expected[0].tolist() and found["y"] == expected[1].tolist()
    reads = [p.memory("load", "f", TABLE + "t", gradient.tables["t"], p.const(k, "i")) for k in range(3)]
    inputs = {("state", n, 0): np.array(v) for n, v in points.items()}
    inputs |= {("gradient", "state", n, 0): np.full(2, g) for n, g in (("x", 2.0), ("y", 3.0))}
    assert np.stack(evaluate_double(p, reads, inputs, tables), 1).tolist() == expected[2].tolist()


def test_an_operation_without_a_rule_is_named(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "erf", ("f", np.tanh))
    p = Program()
    x = p.input(("state", "x", 0), "f")
    with pytest.raises(Refusal, match="the step computes erf, which have no derivative here"):
        differentiate(step(p, {"x": p.op("erf", x)}))
