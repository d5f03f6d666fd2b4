"""Supervised losses that need more than torch's own say in a config file; any torch.nn loss works by dotted path."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import add
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

Positive = Annotated[float, Field(gt=0)]
Price = Annotated[float, Field(ge=0)]
Transform = Literal["log_softmax", "softmax", "sigmoid", "log_sigmoid", "exp", "softplus", "tanh", "normalize"]
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "log_softmax": partial(F.log_softmax, dim=-1),
    "softmax": partial(F.softmax, dim=-1),
    "sigmoid": torch.sigmoid,
    "log_sigmoid": F.logsigmoid,
    "exp": torch.exp,
    "softplus": F.softplus,
    "tanh": torch.tanh,
    "normalize": partial(F.normalize, dim=-1),
}


class CrossEntropy(nn.Module):
    """−log softmax(outputs)[target], averaged: outputs [B, K] float against classes [B] int64 → [].

    `label_smoothing` ε moves that share of the target to all classes evenly (Szegedy et al. 2016); `weight` prices
    the K classes, as a list, where torch.nn.CrossEntropyLoss asks for a tensor. Raises ValueError for K = 1, of which
    the loss is 0 whatever the output.
    """

    def __init__(
        self,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        weight: Sequence[Positive] | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.weight: Tensor | None
        self.register_buffer("weight", None if weight is None else torch.tensor(weight, dtype=torch.float32))

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        if outputs.shape[-1] == 1:
            raise ValueError("the softmax of one output is always 1; a yes or no takes BinaryCrossEntropy")
        return F.cross_entropy(outputs, target, self.weight, label_smoothing=self.label_smoothing)


class BinaryCrossEntropy(nn.Module):
    """−[w·y·log σ(z) + (1 − y)·log(1 − σ(z))], averaged: logits z [B, O] against y [B, O] float in [0, 1] → [].

    With several outputs O it is the multi-label loss: each label is a yes or no of its own. `positive_weight` w prices
    the positives, for sets in which they are rare: one number, or one per label.
    """

    def __init__(self, positive_weight: Positive | Sequence[Positive] = 1.0) -> None:
        super().__init__()
        self.positive_weight: Tensor
        self.register_buffer("positive_weight", torch.tensor(positive_weight))

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, target, pos_weight=self.positive_weight)


class AsymmetricL1(nn.Module):
    """over·max(ŷ − y, 0) + under·max(y − ŷ, 0), averaged: outputs [B, O] against y [B, O] → [].

    Prices predictions above and below the truth differently; its optimum is the quantile under / (over + under) of y
    (the pinball loss, Koenker and Bassett 1978). With both 1 it is the mean absolute error.
    """

    def __init__(self, over: Positive = 1.0, under: Positive = 1.0) -> None:
        super().__init__()
        self.over, self.under = over, under

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        error = outputs - target
        return torch.maximum(self.over * error, -self.under * error).mean()


class Transformed(nn.Module):
    """loss(transform(outputs), target): for losses of torch's that take other than a network's plain outputs.

    `transform` is applied over the last dimension: "log_softmax" (torch.nn.NLLLoss, torch.nn.KLDivLoss), "softmax",
    "sigmoid", "log_sigmoid", "exp", "softplus" (torch.nn.PoissonNLLLoss with log_input false, …), "tanh" or
    "normalize" (to length 1).
    """

    def __init__(self, loss: nn.Module, transform: Transform) -> None:
        super().__init__()
        self.loss, self.transform = loss, transform

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        return self.loss(TRANSFORMS[self.transform](outputs), target)


class ELBO(nn.Module):
    """−log p(x|z) + beta·KL(q(z|x) ‖ N(0, 1)), the negative evidence lower bound, per row and averaged (Kingma and
    Welling 2014; beta: Higgins et al. 2017): outputs [B, O + 2L] of `marl.networks.VAE` against y [B, O] → [].

    KL = −½ Σ (1 + log σ² − μ² − σ²). `likelihood`: "bernoulli" = cross-entropy of y in [0, 1] with the logits, summed
    over O; "gaussian" = ½ Σ (y − ŷ)², a normal with deviation 1. Raises ValueError for outputs of another size.
    """

    def __init__(self, beta: Price = 1.0, likelihood: Literal["bernoulli", "gaussian"] = "bernoulli") -> None:
        super().__init__()
        self.beta, self.likelihood = beta, likelihood

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        size = target.shape[-1]
        latent, odd = divmod(outputs.shape[-1] - size, 2)
        if odd or latent < 1:
            raise ValueError("it takes a reconstruction, means and log-variances side by side; network=vae gives them")
        reconstruction, mean, log_variance = outputs.split([size, latent, latent], -1)
        if self.likelihood == "bernoulli":
            distance = F.binary_cross_entropy_with_logits(reconstruction, target, reduction="none").sum(-1)
        else:
            distance = F.mse_loss(reconstruction, target, reduction="none").sum(-1) / 2
        divergence = -(1 + log_variance - mean.square() - log_variance.exp()).sum(-1) / 2
        return (distance + self.beta * divergence).mean()


class Weighted(nn.Module):
    """Σ weight·loss over several losses of the same outputs: `losses` {name: module}, `weights` {name: number} → [].

    A name without a weight counts once. Raises ValueError for a weight of no loss.
    """

    def __init__(self, losses: Mapping[str, nn.Module], weights: Mapping[str, Positive] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.weights = dict(weights or {})
        if unknown := set(self.weights) - set(losses):
            raise ValueError(f"weights of {', '.join(sorted(unknown))}: the losses are {', '.join(losses)}")

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        weighted = (self.weights.get(name, 1.0) * loss(outputs, target) for name, loss in self.losses.items())
        return reduce(add, weighted)


class Penalised(nn.Module):
    """An objective plus a price on the outputs' size: loss + l1·mean|ŷ| + l2·mean ŷ² → [].

    Keeps logits or predictions small (an activity regularisation). The weights' own penalties are `optimizer.l1` and
    `optimizer.weight_decay`.
    """

    def __init__(self, loss: nn.Module, l1: Price = 0.0, l2: Price = 0.0) -> None:
        super().__init__()
        self.loss, self.l1, self.l2 = loss, l1, l2

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        return self.loss(outputs, target) + self.l1 * outputs.abs().mean() + self.l2 * outputs.square().mean()
