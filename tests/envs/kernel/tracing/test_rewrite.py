"""What Python asks of tensors while a step is traced: answered, rewritten, or refused in one sentence."""

import pytest
import torch

from envs.kernel.tracing.tape import Refusal
from tests.envs.kernel.helpers import E, compare, lowered


def numbers(*shape, seed=0):
    return torch.randn(E, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("function, words", [
    (lambda x: x * x.max().item(), "Python number"),
    (lambda x: x * float(x[0, 0]), "Python number"),
    (lambda x: x[torch.nonzero(x[:, 0] > 0)], "varying number"),
    (lambda x: torch.masked_select(x, x > 0), "varying number"),
    (lambda x: x[torch.where(x[:, 0] > 0)], "varying number"),
    (lambda x: x[:, torch.randperm(2)], "randperm"),
])  # fmt: skip
def test_what_cannot_be_traced_is_refused_with_its_line(function, words):
    with pytest.raises(Refusal, match=words) as refusal:
        lowered(function, numbers(2))
    assert "test_rewrite.py:" in str(refusal.value)


def _caught(x):
    try:
        assert (x > 0).all()
        return x
    except AssertionError:
        return -x


def test_an_assert_that_may_be_caught_is_refused():
    with pytest.raises(Refusal, match="asserts something of all environments within a try at test_rewrite.py:"):
        lowered(_caught, numbers(2))


def _many(x):
    for _ in range(20):
        if (x < 0).any():
            x = torch.where(x < 0, x + 0.5, x)
    return x


def test_a_branch_in_a_for_loop_is_taken_every_time():
    compare(_many, numbers(2))


def _false_assert(x):
    assert (x > 100).all(), "too small"
    return x


def test_asserts_are_answered_with_the_truth():
    with pytest.raises(AssertionError, match="too small"):
        lowered(_false_assert, numbers(2))


def _shortcut(x):
    if (x > 2.9).any():
        x = torch.where(x > 2.9, 0.0, x)
    if not (x < -2.9).any():
        return x
    x[x < -2.9] = 1.0
    return x


def test_shortcuts_are_taken():
    compare(_shortcut, numbers(2) * 3)


def _constant_question(x):
    if (torch.zeros(2) == 0).all():
        x = x + 1
    return x


def test_questions_about_constants_are_answered_with_the_truth():
    compare(_constant_question, numbers(2))


def _draw_until_positive(x):
    drawn = x.clone()
    while True:
        again = drawn < 0
        if again.any():
            drawn[again] = torch.randn(E)[again]
        else:
            break
    return drawn


def test_rejection_loops_are_unrolled():
    low, arrays, (result,), _ = lowered(_draw_until_positive, numbers())
    draws = {op[1][1] for op in low.program.ops if op[0] == "input" and op[1][0] == "noise"}
    assert len(draws) == 16 and (result >= 0).all()


def test_masked_reads_feed_masked_writes():
    def function(x, y):
        near = y[:, 0] > 0
        x[near] = x[near] / x[near].norm(dim=-1, keepdim=True)
        x[near, 0] -= y[near, 1]
        x[~near] *= 2
        return x

    compare(function, numbers(2), numbers(2, seed=1))
