"""The derivative of every operation: torch's own, at smooth points and exactly at kinks."""

import numpy as np
import pytest
import torch

from envs.kernel.ir.derivatives import BRANCHES, FLAT, RULES, Products, find_finite
from envs.kernel.ir.program import OPERATIONS, Program, evaluate

ANY = [-2.5, -1.0, -0.3, 0.0, 0.4, 1.0, 2.0]
POSITIVE, INNER = [0.2, 1.0, 2.5], [-0.9, -0.2, 0.0, 0.5]
TORCH = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "tanh": torch.tanh,
    "atan2": torch.atan2,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "pow": torch.pow,
    "fmod": torch.fmod,
    "min": torch.minimum,
    "max": torch.maximum,
    "mul0": torch.mul,
    "same": lambda x: x * 1,
}
FIRST = {"sqrt": POSITIVE, "log": POSITIVE, "log1p": INNER, "asin": INNER, "acos": INNER, "pow": [0.0, 0.7, 2.0]}
SECOND = {"div": [-2.0, 0.5, 3.0], "fmod": [-2.0, 0.7, 1.5], "pow": [0.0, 0.5, 1.0, 3.0], "atan2": [-1.0, 0.5, 2.0]}
BINARY = {"add", "sub", "mul", "div", "atan2", "pow", "fmod", "min", "max", "mul0"}


def shares(name: str, *values: list[float], g: float = 1.0) -> list[np.ndarray]:
    """What a rule gives each argument of an operation at these points."""
    p = Program()
    arguments = tuple(p.input((f"x{i}",), "f") for i in range(len(values)))
    v, incoming = p.op(name, *arguments), p.input(("g",), "f")
    given = RULES[name](Products(p, find_finite(p, [*arguments, v])), incoming, v, arguments)
    assert [a for a, _ in given] == list(arguments)
    points = {(f"x{i}",): np.array(x, np.float32) for i, x in enumerate(values)}
    points["g",] = np.full(len(values[0]), g, np.float32)
    return [np.broadcast_to(x, len(values[0])) for x in evaluate(p, [share for _, share in given], points)]


def test_every_operation_has_a_rule_and_none_has_two():
    assert OPERATIONS.keys() == RULES.keys() | FLAT | BRANCHES
    assert len(OPERATIONS) == len(RULES) + len(FLAT) + len(BRANCHES)
    assert RULES.keys() == TORCH.keys()


@pytest.mark.parametrize("name", sorted(TORCH))
def test_rules_are_torchs_and_at_ties_too(name):
    first = FIRST.get(name, ANY)
    points = [[x] for x in first]
    if name in BINARY:
        points = [[x, y] for x in first for y in SECOND.get(name, ANY)]
    columns = [list(column) for column in zip(*points, strict=True)]
    inputs = [torch.tensor(column, requires_grad=True) for column in columns]
    expected = torch.autograd.grad(TORCH[name](*inputs).sum() * 1.5, inputs)
    for ours, theirs in zip(shares(name, *columns, g=1.5), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(FLAT & {"floor", "ceil", "trunc", "round"}))
def test_whole_number_functions_have_torchs_slope(name):
    x = torch.tensor(ANY, requires_grad=True)
    assert not torch.autograd.grad(getattr(torch, name)(x).sum(), x)[0].any()


def test_slopes_at_rest_are_those_of_torchs_norm():
    x = torch.zeros(2, requires_grad=True)
    assert not torch.autograd.grad(torch.linalg.vector_norm(x), x)[0].any()
    assert shares("sqrt", [0.0])[0] == 0
    assert [float(s[0]) for s in shares("atan2", [0.0], [0.0])] == [0, 0]


def test_equal_arguments_share_and_a_limit_takes_no_share():
    assert [float(s[0]) for s in shares("max", [2.0], [2.0])] == [0.5, 0.5]
    p = Program()
    x, limit = p.input(("x",), "f"), p.const(1.0, "f")
    v, g = p.op("min", x, limit), p.input(("g",), "f")
    given = dict(RULES["min"](Products(p, {}), g, v, (x, limit)))
    points = {("x",): np.array([0.5, 1.0, 2.0], np.float32), ("g",): np.ones(3, np.float32)}
    clamped = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
    expected = torch.autograd.grad(clamped.clamp(max=1.0).sum(), clamped)[0]
    assert evaluate(p, [given[x]], points)[0].tolist() == expected.tolist() == [1, 1, 0]


@pytest.mark.parametrize(("name", "at"), [("div", [[1.0], [0.0]]), ("log", [[0.0]]), ("pow", [[0.0], [0.5]])])
def test_a_zero_gradient_times_an_infinite_derivative_is_zero(name, at):
    assert all(float(share[0]) == 0 for share in shares(name, *at, g=0.0))
    assert any(not np.isfinite(share).all() for share in shares(name, *at, g=1.0))
