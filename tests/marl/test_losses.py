"""Supervised losses against their formulas and torch's own modules."""

import pytest
import torch
from torch import nn

from marl.losses import BinaryCrossEntropy, CrossEntropy


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
