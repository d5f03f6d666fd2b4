"""The clipped surrogate by hand and against autograd on the plain formula, with the dual clip too."""

import pytest
import torch

from agents.algorithms.ppo_losses import clipped_surrogate


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    # An improvement counts up to the clip only, a worsening counts in full.
    expected = -torch.tensor([1.2, -1.5, 0.5, -0.8, 2.2])
    log_ratio = ratio.log().requires_grad_()
    loss, _, clip_fraction = clipped_surrogate(log_ratio, advantage, 0.2)
    torch.testing.assert_close(loss, expected.mean())
    assert clip_fraction.item() == pytest.approx(0.8) and not clip_fraction.requires_grad
    (3 * loss).backward()
    torch.testing.assert_close(log_ratio.grad, -3 / 5 * torch.tensor([0.0, -1.5, 0.5, 0.0, 2.2]))


@pytest.mark.parametrize("dual", [None, 1.2])
def test_surrogate_and_its_gradient_equal_autograds(dual):
    generator = torch.Generator().manual_seed(0)
    log_ratio = (0.3 * torch.randn(500, 3, generator=generator)).requires_grad_()
    advantage = torch.randn(500, 3, generator=generator)
    ratio = log_ratio.exp()
    plain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    if dual is not None:
        bounded = torch.where(advantage < 0, torch.maximum(plain, dual * advantage), plain)
        assert 0.02 < (bounded != plain).float().mean() < 0.5
        plain = bounded
    plain = -plain.mean()
    loss, _, _ = clipped_surrogate(log_ratio, advantage, torch.tensor(0.2), dual)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(*(torch.autograd.grad(x, log_ratio)[0] for x in (loss, plain)))


def test_ratio_diagnostics():
    def ratio_diagnostics(log_ratio, clip):
        return clipped_surrogate(log_ratio, torch.ones_like(log_ratio), clip)[1:]

    kl, fraction = ratio_diagnostics(torch.zeros(4, 2), 0.2)
    assert kl.item() == 0.0 and fraction.item() == 0.0
    log_ratio = torch.tensor([[1.3, 0.7], [1.1, 0.9]]).log()
    kl, fraction = ratio_diagnostics(log_ratio, 0.2)
    assert fraction.item() == 0.5
    assert kl.item() == pytest.approx(((log_ratio.exp() - 1) - log_ratio).mean().item(), abs=1e-7)
    # Unbiased: on samples of the old policy it estimates KL(old, new), here of two unit Gaussians 0.1 apart.
    x = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0))
    kl, _ = ratio_diagnostics((x.square() - (x - 0.1).square()) / 2, 0.2)
    assert kl.item() == pytest.approx(0.1**2 / 2, rel=0.01)


def test_dual_clip_by_hand():
    ratio, advantage = torch.tensor([1.1, 2.0, 5.0, 5.0]), torch.tensor([-1.0, -1.0, -1.0, 1.0])
    log_ratio = ratio.log().requires_grad_()
    loss, _, _ = clipped_surrogate(log_ratio, advantage, 0.2, 3.0)
    # A bad action made five times as likely counts as if it were three times; a good one knows the usual clip only.
    torch.testing.assert_close(loss, -torch.tensor([-1.1, -2.0, -3.0, 1.2]).mean())
    loss.backward()
    torch.testing.assert_close(log_ratio.grad, -torch.tensor([-1.1, -2.0, 0.0, 0.0]) / 4)
