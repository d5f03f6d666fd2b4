"""Supervised losses against their formulas and torch's own modules."""

import pytest
import torch
from torch import nn

from marl.config import compose, conf_tree
from marl.launch import build
from marl.losses.objectives import (
    ELBO,
    AsymmetricL1,
    BinaryCrossEntropy,
    CrossEntropy,
    Penalised,
    Transformed,
    Weighted,
)


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


def test_nll_and_kl_are_torchs_after_a_log_softmax():
    outputs, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    nll = Transformed(nn.NLLLoss(), "log_softmax")
    torch.testing.assert_close(nll(outputs, target), nn.CrossEntropyLoss()(outputs, target))
    p = torch.randn(6, 4).softmax(-1)
    kl = Transformed(nn.KLDivLoss(reduction="batchmean"), "log_softmax")
    torch.testing.assert_close(kl(outputs, p), (p * (p.log() - outputs.log_softmax(-1))).sum(-1).mean())
    assert kl(p.log(), p).abs() < 1e-6


def test_multi_label_weighs_each_label_as_torch_does():
    outputs, target = torch.randn(5, 3), torch.randint(2, (5, 3)).float()
    theirs = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 5.0]))
    torch.testing.assert_close(BinaryCrossEntropy([1.0, 2.0, 5.0])(outputs, target), theirs(outputs, target))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_elbo_is_likelihood_and_divergence(likelihood):
    outputs, target = torch.randn(7, 5 + 2 * 3), torch.rand(7, 5)
    logits, mean, log_variance = outputs.split([5, 3, 3], -1)
    code = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(code, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    p = logits.sigmoid()
    distance = -(target * p.log() + (1 - target) * (1 - p).log()).sum(-1)
    if likelihood == "gaussian":
        distance = (logits - target).square().sum(-1) / 2
    expected = (distance + 0.5 * divergence).mean()
    torch.testing.assert_close(ELBO(0.5, likelihood)(outputs, target), expected)
    with pytest.raises(ValueError, match="network=vae"):
        ELBO()(torch.randn(7, 5), target)


TARGETS = {  # for each objective of conf/: outputs [B, …] and a target that it prices
    "cross_entropy": ((6, 4), torch.arange(6) % 4),
    "smoothed_cross_entropy": ((6, 4), torch.arange(6) % 4),
    "nll": ((6, 4), torch.arange(6) % 4),
    "kl": ((6, 4), torch.full((6, 4), 0.25)),
    "elbo": ((6, 8), torch.rand(6, 4)),
    "hinge_embedding": ((6, 2, 4), torch.ones(6, 1)),
    "margin_ranking": ((6, 2, 1), torch.ones(6, 1)),
    "triplet_margin": ((6, 3, 4), torch.ones(6, 1)),
}


@pytest.mark.parametrize("name", conf_tree.group_options("objective"))
def test_every_objective_of_the_configuration_prices_and_has_a_gradient(name):
    node = compose.check(compose.compose([f"objective={name}"]))["objective"]
    shape, target = TARGETS.get(name, ((6, 3), torch.randint(2, (6, 3)).float()))
    outputs = torch.randn(shape, requires_grad=True)
    price = build.part(node)(outputs, target)
    price.backward()
    assert price.dim() == 0 and torch.isfinite(price) and outputs.grad.abs().sum() > 0


def test_a_users_own_loss_stands_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        "from torch import nn\n\nclass Cubed(nn.Module):\n    def __init__(self, scale: float = 1.0):\n"
        "        super().__init__()\n        self.scale = scale\n\n    def forward(self, outputs, target):\n"
        "        return self.scale * (outputs - target).abs().pow(3).mean()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["objective._target_=my_losses.Cubed", "~objective.reduction", "+objective.scale=2.0"]
    config = compose.check(compose.compose(["experiment=sine", *arguments]))
    task = build.build_task(config)
    batch = next(task.batches(0))
    expected = 2 * (task.loss.outputs(batch["x"]) - batch["y"]).abs().pow(3).mean()
    torch.testing.assert_close(task.loss(batch)["loss"], expected)
