"""Every lowered operation against torch, on random values and on zeros, infinities and nan."""

import math

import pytest
import torch

from envs.kernel.tracing.tape import Refusal
from tests.envs.kernel.helpers import E, compare, lowered

UNARY = [
    "neg",
    "abs",
    "sqrt",
    "sin",
    "cos",
    "tan",
    "exp",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "floor",
    "ceil",
    "trunc",
    "round",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "sign",
    "isnan",
    "isinf",
    "isfinite",
    "nan_to_num",
    "relu",
    "sigmoid",
    "square",
    "reciprocal",
    "rsqrt",
]
BINARY = [
    "add",
    "sub",
    "mul",
    "div",
    "atan2",
    "fmod",
    "minimum",
    "maximum",
    "remainder",
    "pow",
    "floor_divide",
    "lt",
    "le",
    "gt",
    "ge",
    "eq",
    "ne",
    "logaddexp",
]


def numbers(*shape, seed=0):
    return torch.randn(E, *shape, generator=torch.Generator().manual_seed(seed)) * 3


def awkward(*shape, seed=0):
    x = numbers(*shape, seed=seed)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 1e-30])
    x.view(-1)[: 8 * 3] = special.repeat(3)[torch.randperm(24, generator=torch.Generator().manual_seed(seed))]
    return x


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number(name):
    x = numbers(3) / 4 if name in ("asin", "acos", "tan") else numbers(3)
    compare(lambda x: getattr(torch, name)(x), x)
    if name not in ("sin", "cos", "tan"):
        compare(lambda x: getattr(torch, name)(x), awkward(3))


@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_numbers(name):
    compare(lambda x, y: getattr(torch, name)(x, y), numbers(2, 3), numbers(3, seed=1).unsqueeze(1))
    if name not in ("pow", "floor_divide", "remainder"):
        compare(lambda x, y: getattr(torch, name)(x, y), awkward(3), awkward(3, seed=1))


@pytest.mark.parametrize("exponent", [-2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 2.5])
def test_powers(exponent):
    compare(lambda x: x**exponent, numbers(3).abs() + 0.1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: torch.where(x > y, x, 0.0),
        lambda x, y: torch.where(x > 0.5, 1.0, y),
        lambda x, y: x.clamp(-1, 2),
        lambda x, y: x.clamp(max=0.5),
        lambda x, y: x.clamp(y.abs() * -1, y.abs()),
        lambda x, y: 2 - x,
        lambda x, y: x / 3,
        lambda x, y: x // 0.7,
        lambda x, y: x % 2.0,
        lambda x, y: torch.sub(x, y, alpha=2),
        lambda x, y: x.lerp(y, 0.3),
        lambda x, y: (x > 0) & (y > 0) | ~(x > 1) ^ (y < 1),
        lambda x, y: (x > 0) * (y > 0) + (x > 2),
        lambda x, y: (x > 0).float() * y,
        lambda x, y: x.long() * 2 + 1,
        lambda x, y: (x * 10).long() // 3,
        lambda x, y: (x * 10).long() % 3,
        lambda x, y: (x > 0).sum(-1),
        lambda x, y: torch.addcmul(x, x, y),
        lambda x, y: x.masked_fill(y > 0, 7.0),
        lambda x, y: (x > 0) == (y > 0),
        lambda x, y: (x > y).to(torch.int),
    ],
)
def test_mixed_expressions(function):
    compare(function, numbers(3), numbers(3, seed=1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum(-1),
        lambda x: x.sum((1, 2)),
        lambda x: x.sum(1, keepdim=True),
        lambda x: x.mean(-1),
        lambda x: x.prod(1),
        lambda x: x.std(-1),
        lambda x: x.var(-1, unbiased=False),
        lambda x: x.amin(-1),
        lambda x: x.min(-1),
        lambda x: x.max(1, keepdim=True),
        lambda x: x.argmin(-1),
        lambda x: x.argmax(1),
        lambda x: (x > 0).any(-1),
        lambda x: (x > 0).all(1),
        lambda x: torch.linalg.vector_norm(x, dim=-1),
        lambda x: x.norm(p=1, dim=-1),
        lambda x: torch.linalg.vector_norm(x, ord=math.inf, dim=1),
        lambda x: x.cumsum(1),
        lambda x: torch.cdist(x, x[:, :1]),
        lambda x: x @ x.transpose(1, 2),
        lambda x: torch.einsum("eab,ecb->eac", x, x),
        lambda x: torch.linalg.solve_triangular(x[:, :, :2].tril() + 5 * torch.eye(2), x, upper=False),
    ],
)
def test_reductions_and_products(function):
    compare(function, numbers(2, 4), tolerance=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, 0],
        lambda x: x[..., 1:],
        lambda x: x[:, ::2],
        lambda x: x.unsqueeze(1),
        lambda x: x.transpose(1, 2),
        lambda x: x.permute(0, 2, 1).flatten(1),
        lambda x: x.view(E, -1),
        lambda x: x.view(E * 2, 4).view(E, 2, 4) * 2,
        lambda x: torch.stack([x, -x], 0)[1],
        lambda x: torch.cat([x, x], -1),
        lambda x: x[:, :, None].expand(E, 2, 3, 4),
        lambda x: x.repeat(1, 2, 1),
        lambda x: torch.stack(x.unbind(1), -1),
        lambda x: x.split([1, 3], -1),
        lambda x: x.flip(1),
        lambda x: x.roll(1, 2),
        lambda x: torch.nn.functional.pad(x, (0, 3)),
        lambda x: torch.nn.functional.pad(x, (-1, 2, 1, 0), value=0.5),
        lambda x: torch.nn.functional.pad(x.long(), (1, 1), value=3.7) * 2,
        lambda x: x[:, [1, 0]],
        lambda x: x[:, :, torch.tensor([3, 1])],
        lambda x: x.squeeze(-1),
        lambda x: torch.diagonal(x, dim1=1, dim2=2),
        lambda x: torch.zeros_like(x) + x,
        lambda x: torch.full((E, 2), 3.0) * x[:, 0, :1],
        lambda x: torch.linspace(0, 1, 4) * x,
        lambda x: x.swapaxes(1, 2),
    ],
)
def test_views_and_joins(function):
    compare(function, numbers(2, 4))


def _writes(x, y):
    x = x.clone()
    row = x[:, 0]
    row += 1  # through a view
    x[:, 1, 2] = y[:, 0]
    x[..., 0] *= 2
    x[y[:, 0] > 0] = 0.5
    x[y[:, 1] > 0, 1] += y[y[:, 1] > 0, :4] + 1
    x[y[:, 2] > 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    row.clamp_(-1, 1)
    return x


def test_in_place_writes_reach_every_view():
    compare(_writes, numbers(2, 4), numbers(4, seed=1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: x.gather(1, i),
        lambda x, i: x[torch.arange(E), i[:, 0]],
        lambda x, i: torch.zeros(E, 5).scatter_(1, i, 1.0),
        lambda x, i: torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])[i],
        lambda x, i: torch.nn.functional.one_hot(i[:, 0], 5),
        lambda x, i: x.clone().index_put_((torch.arange(E), i[:, 1]), torch.tensor(9.0)),
        lambda x, i: x[torch.arange(E), i[:, 0] - 5],
    ],
)
def test_lookups_by_data(function):
    i = torch.randint(5, (E, 2), generator=torch.Generator().manual_seed(0))
    compare(function, numbers(5), i)


@pytest.mark.parametrize(
    "function, name",
    [
        (lambda x: x.sum(), "sum"),
        (lambda x: x[0] + x, "select"),
        (lambda x: x - x.mean(0), "mean"),
        (lambda x: x.flip(0), "flip"),
        (lambda x: torch.nn.functional.pad(x, (0, 0) * (x.dim() - 1) + (1, 0)), "pad"),
        (lambda x: torch.cat([x, x]).view(2, E, 4)[0], "cat"),
        (lambda x: x[1:].sum(1), "slice"),
        (lambda x: x.sort(1)[0], "sort"),
    ],
)
def test_what_crosses_environments_or_has_no_rule_is_named(function, name):
    low, arrays, _, _ = lowered(function, numbers(4))
    needed = low.program.live([int(v) for v in arrays[0].reshape(-1)])
    reasons = [low.program.ops[v][1] for v in needed if low.program.ops[v][0] == "poison"]
    assert reasons and name in reasons[0] and "test_lowering.py" in reasons[0]


def test_an_unused_question_to_all_environments_is_no_hindrance():
    def function(x):
        assert (x < 100).all()
        if (x > 0).any():
            x = x + 1
        return x

    compare(function, numbers(2))


def test_doubles_of_a_number_are_computed_once():
    low, arrays, _, _ = lowered(lambda x: torch.stack([x.sin() + 1, 1 + x.sin()], -1), numbers())
    assert arrays[0][0, 0] == arrays[0][0, 1]


def test_writes_into_memory_shared_by_two_inputs_are_refused():
    base = numbers(4)
    with pytest.raises(Refusal, match="share"):
        lowered(lambda a, b: b.add_(1), base, base[:, :2])
