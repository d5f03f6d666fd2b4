"""Supervised losses against their formulas and torch's own modules."""

import pytest
import torch
from torch import nn

from marl.losses import AsymmetricL1, BinaryCrossEntropy, CrossEntropy, Penalised, Weighted


def test_cross_entropy_is_the_negative_log_probability():
    outputs, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    expected = -outputs.log_softmax(-1)[torch.arange(6), target].mean()
    torch.testing.assert_close(CrossEntropy()(outputs, target), expected)


def test_cross_entropy_takes_weights_and_smoothing_as_torch_does():
    outputs, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 0, 1])
    theirs = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1)
    torch.testing.assert_close(CrossEntropy(0.1, [1.0, 2.0, 0.5])(outputs, target), theirs(outputs, target))


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_binary_cross_entropy_prices_positives(weight):
    outputs, target = torch.randn(5, 2), torch.tensor([[1.0, 0.0]] * 5)
    p = outputs.sigmoid()
    expected = -(weight * target * p.log() + (1 - target) * (1 - p).log()).mean()
    torch.testing.assert_close(BinaryCrossEntropy(weight)(outputs, target), expected)
    assert BinaryCrossEntropy(weight)(torch.tensor([[200.0]]), torch.tensor([[0.0]])) == 200  # no overflow


def test_asymmetric_l1_prices_both_sides():
    outputs, target = torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0], [3.0]])
    assert AsymmetricL1(over=2.0, under=0.5)(outputs, target) == (2.0 * 1 + 0.5 * 3) / 2
    x, y = torch.randn(2, 50, 3)
    torch.testing.assert_close(AsymmetricL1()(x, y), nn.L1Loss()(x, y))


def test_asymmetric_l1_is_least_at_the_quantile():
    y = torch.arange(101.0)
    prices = [AsymmetricL1(over=1.0, under=3.0)(torch.full_like(y, q), y) for q in range(101)]
    assert torch.stack(prices).argmin() == 75


def test_weighted_sums_and_penalties_are_their_formulas():
    x, y = torch.randn(2, 20, 3)
    both = Weighted({"mse": nn.MSELoss(), "mae": nn.L1Loss()}, {"mae": 0.25})
    torch.testing.assert_close(both(x, y), (x - y).square().mean() + 0.25 * (x - y).abs().mean())
    penalised = Penalised(nn.MSELoss(), l1=0.1, l2=0.2)
    torch.testing.assert_close(penalised(x, y), (x - y).square().mean() + 0.1 * x.abs().mean() + 0.2 * (x * x).mean())
    with pytest.raises(ValueError, match="weights of mea: the losses are mse"):
        Weighted({"mse": nn.MSELoss()}, {"mea": 1.0})
