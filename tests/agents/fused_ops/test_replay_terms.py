"""Terms of the losses of replayed steps: hand-computed, and values and gradients against torch's operations."""

import math

import pytest
import torch
from torch.nn import functional as F

from agents.fused_ops import replay_terms
from marl.native import library


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_error_by_hand():
    """y = 2 * 1 + 0.5 * (min(4, 3) - 1) = 3 and, terminated, 2 * 2 = 4: errors 1, -1; of the second critic 0, 2."""
    q = torch.tensor([[[4.0], [3.0]], [[3.0], [6.0]]], requires_grad=True)
    values = torch.tensor([[[4.0], [9.0]], [[3.0], [9.0]]])
    reward, over, discount = torch.tensor([[1.0], [2.0]]), torch.tensor([False, True]), torch.tensor([0.5, 0.5])
    loss, mean = replay_terms.td_error(q, values, torch.ones(2, 1), reward, 2.0, over, discount)
    assert loss.item() == (1 + 1) / 2 + (0 + 4) / 2 and mean.item() == 4
    loss.backward()
    assert q.grad.flatten().tolist() == [1.0, -1.0, 0.0, 2.0]  # 2 error / 2


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("critics", "targets"), [(1, 1), (2, 2), (1, 3)])
def test_errors_are_torchs(apart, critics, targets):
    B, A = 37, 3
    q, values = normal(critics, B, A), normal(targets, B, A, seed=1)
    penalty, reward = normal(B, A), normal(B, A, seed=2)
    over, discount = normal(*((B, A) if apart else (B,)), seed=3) > 0, normal(B, seed=4)
    ours, theirs = (q.clone().requires_grad_() for _ in range(2))
    loss, mean = replay_terms.td_error(ours, values, penalty, reward, 0.5, over, discount)
    following = (values.amin(0) - penalty).masked_fill(over if apart else over.unsqueeze(-1), 0.0)
    expected = (theirs - (0.5 * reward + discount.unsqueeze(-1) * following)).square().mean() * critics
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(mean, q.mean())
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_what_is_no_number_stays_one():
    nan = torch.tensor([[[math.nan]], [[1.0]]])
    step = None, torch.ones(1, 1), 1.0, torch.tensor([False]), torch.ones(1)
    for values in (nan, nan.flip(0)):
        assert replay_terms.td_error(torch.zeros(1, 1, 1), values, *step)[0].isnan()


def test_a_soft_loss_by_hand():
    """Temperature 1. y = 2 * 1 + 0.5 * (min(4, 3) - 1) = 3 and, terminated, 4: errors 1, -1; of the second 0, 2.

    Actors: 2 - 3 and 6 - 1, in the mean 2. Entropy -(3 + 1) / 2 = -2, above -5 by 3. Ties of the smallest share.
    """
    q = torch.tensor([[[4.0], [3.0]], [[3.0], [6.0]]], requires_grad=True)
    values = torch.tensor([[[2.0], [6.0]], [[5.0], [6.0]]], requires_grad=True)
    log_prob, warmth = torch.tensor([[3.0], [1.0]], requires_grad=True), torch.zeros((), requires_grad=True)
    following = torch.tensor([[[4.0], [9.0]], [[3.0], [9.0]]]), torch.ones(2, 1)
    of_step = torch.tensor([[1.0], [2.0]]), 2.0, torch.tensor([False, True]), torch.tensor([0.5, 0.5])
    loss, figures = replay_terms.soft(q, *following, values, log_prob, warmth, *of_step, -5.0, True)
    assert figures.tolist() == [3.0, -2.0, 0.0, 4.0, -2.0, 1.0] and loss.item() == 1
    (2 * loss).backward()
    assert q.grad.flatten().tolist() == [2.0, -2.0, 0.0, 4.0] and warmth.grad.item() == 6
    assert values.grad.flatten().tolist() == [-1.0, -0.5, 0.0, -0.5] and log_prob.grad.flatten().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("critics", "targets"), [(1, 1), (2, 2), (1, 3)])
def test_soft_losses_are_torchs(critics, targets, apart, learns):
    B, A = 37, 3
    future, next_log_prob, reward = normal(targets, B, A), normal(B, A, seed=1), normal(B, A, seed=2)
    over, discount = normal(*((B, A) if apart else (B,)), seed=3) > 0, normal(B, seed=4)
    given = normal(critics, B, A, seed=5), normal(critics, B, A, seed=6), normal(B, A, seed=7), torch.tensor(0.3)
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in given] for _ in range(2))
    at = reward, 0.5, over, discount, -1.5, learns
    loss, figures = replay_terms.soft(ours[0], future, next_log_prob, *ours[1:], *at)
    q, values, log_prob, warmth = theirs
    temperature = warmth.detach().exp()
    following = (future.amin(0) - temperature * next_log_prob).masked_fill(over if apart else over.unsqueeze(-1), 0.0)
    critic = (q - (0.5 * reward + discount.unsqueeze(-1) * following)).square().mean() * critics
    actor = -(values.amin(0) - temperature * log_prob).mean()
    third = warmth * (1.5 - log_prob.detach().mean()) if learns else 0 * warmth
    torch.testing.assert_close(loss, critic + actor + third)
    expected = [critic, actor, third, q.mean(), -log_prob.mean(), temperature]
    torch.testing.assert_close(figures, torch.stack(expected).detach(), rtol=1e-5, atol=1e-5)
    (3 * loss).backward()
    (3 * (critic + actor + third)).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_a_soft_loss_is_left_to_torch_where_it_does_not_fit():
    q, rows = normal(2, 5, 3), normal(5, 3)
    step = rows, 1.0, torch.zeros(5, dtype=torch.bool), torch.ones(5), -1.0, True
    assert replay_terms.soft(q, q, rows, q[:1], rows, torch.zeros(()), *step) is None
    assert replay_terms.soft(q.double(), q, rows, q, rows, torch.zeros(()), *step) is None


@pytest.mark.parametrize("mask", [None, torch.tensor([1.0, 0.0]), torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])])
def test_squashed_draws_are_torchs(mask):
    B, A, D, bias, least = 33, 3, 2, 0.3, 0.01
    params, noise = 3 * normal(B, A, 2 * D), normal(B, A, D, seed=1)
    by = normal(B, A, D, seed=2), normal(B, A, seed=3)
    ours, theirs = (params.clone().requires_grad_() for _ in range(2))
    action, log_prob = replay_terms.squashed(ours, noise, bias, least, mask)
    std = F.softplus(theirs[..., D:] + bias) + least
    gaussian = torch.distributions.Normal(theirs[..., :D], std)
    u = theirs[..., :D] + std * noise
    log_jacobian = 2 * (math.log(2) - u - F.softplus(-2 * u))
    density = gaussian.log_prob(u) - log_jacobian
    expected = u.tanh(), (density if mask is None else density * mask).sum(-1)
    torch.testing.assert_close((action, log_prob), expected, rtol=1e-5, atol=1e-5)
    torch.autograd.backward((action, log_prob), by)
    torch.autograd.backward(expected, by)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_extreme_draws_stay_finite():
    params = torch.tensor([[40.0, 60.0], [-40.0, -60.0]], requires_grad=True)  # loc, x
    action, log_prob = replay_terms.squashed(params, torch.tensor([[1.0], [-1.0]]), 0.0, 0.01, None)
    (action.sum() + log_prob.sum()).backward()
    assert action.flatten().tolist() == [1.0, -1.0] and log_prob.isfinite().all() and params.grad.isfinite().all()


def test_a_mixed_value_by_hand():
    """Hidden units 1 + 2 * 3 - 1 * 1 = 6 and -2 + 0 - 1 * 1 = -3; the value 0.5 + 2 * 6 + 4 (e^-3 - 1)."""
    w1 = torch.tensor([[3.0, 0.0, -1.0, 1.0]])  # of the first agent, of the second
    out = replay_terms.mixed(
        torch.tensor([[2.0, -1.0]]), w1, torch.tensor([[1.0, -2.0]]), torch.tensor([[-2.0, 4.0]]), torch.tensor([[0.5]])
    )
    torch.testing.assert_close(out, torch.tensor([12.5 + 4 * math.expm1(-3)]))


@pytest.mark.parametrize(("agents", "units"), [(1, 5), (3, 16), (4, 35)])
def test_mixed_values_are_torchs(agents, units):
    B, sizes = 21, (agents, agents * units, units, units, 1)
    inputs = [2 * normal(B, size, seed=i) for i, size in enumerate(sizes)]
    ours, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    values, w1, b1, w2, b2 = theirs
    hidden = F.elu(torch.einsum("ba,bam->bm", values, w1.abs().view(B, agents, units)) + b1)
    expected = (hidden * w2.abs()).sum(-1) + b2.squeeze(-1)
    out = replay_terms.mixed(*ours)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    by = normal(B, seed=9)
    for a, b in zip(torch.autograd.grad(out, ours, by), torch.autograd.grad(expected, theirs, by), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_left_to_torch(monkeypatch):
    step = None, torch.ones(4, 2), 1.0, torch.zeros(4, dtype=torch.bool), torch.ones(4)
    assert replay_terms.td_error(normal(1, 4, 2), normal(1, 4, 2), *step) is not None
    assert replay_terms.td_error(normal(1, 2, 4).mT, normal(1, 4, 2), *step) is None
    assert replay_terms.td_error(normal(1, 4, 2).double(), normal(1, 4, 2), *step) is None
    assert replay_terms.td_error(normal(1, 4, 3), normal(1, 4, 3), *step) is None
    assert replay_terms.squashed(normal(4, 2, 5), normal(4, 2, 2), 0.0, 0.01, None) is None
    monkeypatch.setattr(library, "enabled", False)
    assert replay_terms.td_error(normal(1, 4, 2), normal(1, 4, 2), *step) is None
    assert replay_terms.squashed(normal(4, 2, 4), normal(4, 2, 2), 0.0, 0.01, None) is None
