"""Losses of pairs and triplets against their formulas, and what a network learns from them."""

import pytest
import torch
from torch import nn

from marl.losses.comparisons import HingeEmbedding, MarginRanking, TripletMargin
from marl.networks import MLP


def test_hinge_embedding_is_its_formula():
    outputs = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.3, 0.4]], [[0.0, 0.0], [3.0, 4.0]]])
    target = torch.tensor([[1.0], [0.0], [-1.0]])  # same: 5; different and near: 2 - 0.5; different and far: 0
    assert HingeEmbedding(margin=2.0)(outputs, target).item() == pytest.approx((5 + 1.5 + 0) / 3, abs=1e-4)


def test_margin_ranking_is_its_formula():
    outputs, target = torch.tensor([[[2.0], [1.5]], [[2.0], [1.5]]]), torch.tensor([1.0, 0.0])
    assert MarginRanking(margin=1.0)(outputs, target).item() == pytest.approx((0.5 + 1.5) / 2)
    with pytest.raises(ValueError, match="one score per row"):
        MarginRanking()(torch.zeros(4, 2, 3), target)


def test_triplets_are_torchs_and_the_hardest_of_a_batch():
    outputs = torch.randn(6, 3, 4)
    expected = nn.TripletMarginLoss(0.7)(*outputs.unbind(1))
    torch.testing.assert_close(TripletMargin(0.7)(outputs, torch.zeros(6)), expected)
    x = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
    classes = torch.tensor([0, 0, 1, 2])  # of 1.5 and 9 there is no second: they are no anchors
    hardest = ((1 - 1.5 + 1) + (1 - 0.5 + 1)) / 2
    assert TripletMargin(1.0)(x, classes).item() == pytest.approx(hardest, abs=1e-4)


@pytest.mark.parametrize("loss", [HingeEmbedding(), MarginRanking(), TripletMargin()])
def test_other_shapes_are_refused(loss):
    with pytest.raises(ValueError, match=r"outputs \[B, [23], O\]"):
        loss(torch.randn(4, 5, 1), torch.ones(4))


def test_a_network_learns_a_ranking_from_pairs():
    torch.manual_seed(0)
    net = MLP(2, 1, hidden=[16])
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    x = torch.randn(256, 2, 2)
    truth = x[..., 0] - 2 * x[..., 1]
    target = (truth[:, 0] > truth[:, 1]).float()
    for _ in range(100):
        optimizer.zero_grad()
        MarginRanking()(net(x), target).backward()
        optimizer.step()
    new = torch.randn(500, 2, 2)
    scores, truth = net(new).squeeze(-1), new[..., 0] - 2 * new[..., 1]
    assert ((scores[:, 0] > scores[:, 1]) == (truth[:, 0] > truth[:, 1])).float().mean() > 0.95


def test_an_embedding_separates_classes_by_triplets():
    torch.manual_seed(0)
    net = MLP(2, 2, hidden=[16], activation="relu")
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    corners = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]]).repeat(50, 1)
    classes = (corners.prod(-1) > 0).long()  # exclusive or: no linear map brings the classes together
    x = corners + 0.3 * torch.randn(200, 2)
    for _ in range(150):
        optimizer.zero_grad()
        TripletMargin()(net(x), classes).backward()
        optimizer.step()
    codes = net(corners + 0.3 * torch.randn(200, 2))
    centres = torch.stack([net(x)[classes == kind].mean(0) for kind in (0, 1)])
    assert (torch.cdist(codes, centres).argmin(1) == classes).float().mean() > 0.95
