"""PPO's losses as pure functions of tensors, without host synchronisation.

Shapes: B minibatch rows (environment frames), A agents in a group.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.fused_ops import native
from agents.fused_ops.autograd import ClippedSurrogate, PrecomputedGradient

ValueLoss = Literal["l2", "huber"]


def clipped_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    clip: float | Tensor,
    dual: float | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's policy loss (Schulman et al. 2017, equation 7, negated) and how far the policy moved.

    With `dual` c an action with a negative advantage counts at most c times that advantage, however likely the new
    policy makes it: max(min(ratio * A, clipped ratio * A), c A) where A < 0 (Ye et al. 2020, equation 5).

    Args:
        log_ratio: log pi(a|s) - log pi_old(a|s), float32 [B, A].
        advantage: float32 [B, A].
        clip: epsilon; the ratio is clipped into [1 - clip, 1 + clip]; a number or a scalar on the device.
        dual: c, above 1; None = no such bound.
        weight: float32 [B, A], sum 1: of each sample in the three means; None = all the same.

    Returns:
        Scalars. The loss: mean of -min(ratio * advantage, clipped ratio * advantage). approx_kl: mean of
        (ratio - 1) - log ratio, unbiased, never negative, of low variance (Schulman 2020, "k3",
        joschu.net/blog/kl-approx.html). clip_fraction: the share of samples whose ratio left [1 - clip, 1 + clip].
        The last two carry no gradient.
    """
    return ClippedSurrogate.apply(log_ratio, advantage, clip, dual, weight)


def counted(like: Tensor, alive: Tensor | None, only: int | None) -> Tensor:
    """Which samples the policy's loss is about, bool [B, A]: agents that are alive, or one of them.

    Death masking (Yu et al. 2022, section 5.5): the dead have no part in policy loss, entropy and the advantages'
    normalisation. Their values are learnt like the others', from an observation of zeros and the agent's id, since the
    living are bootstrapped from them; but not where an agent's episode ends with it (`GroupSpec.ends`).
    """
    counts = torch.ones_like(like, dtype=torch.bool) if alive is None else alive
    return counts if only is None else counts & (torch.arange(like.shape[-1], device=like.device) == only)


def mean_weights(counts: Tensor) -> Tensor:
    """Weights with which a sum is the mean over the samples that count: bool [B, A] -> float32 [B, A]."""
    weight = counts.float()
    return weight / weight.sum().clamp(min=1.0)


def value_loss(
    value: Tensor,
    target: Tensor,
    old_value: Tensor | None = None,
    kind: ValueLoss = "l2",
    huber_delta: float = 10.0,
    clip: float | None = None,
) -> Tensor:
    """The critic's loss per sample.

    l2 is the squared error without a factor 1/2, as in TorchRL. huber is e^2/2 within huber_delta and
    delta (|e| - delta/2) beyond, as in the official MAPPO code (at delta 1 it is TorchRL's smooth_l1).
    With `clip` the prediction may move by at most `clip` from the old value; the worse of both losses counts.

    Args:
        value: prediction, float32 [B, A].
        target: returns, float32 [B, A].
        old_value: prediction at collection time, float32 [B, A]; read only with `clip`.
        kind, huber_delta: see above.
        clip: in units of the return; None = not clipped.

    Returns:
        float32 [B, A].
    """

    old, delta = None if clip is None else old_value, huber_delta if kind == "huber" else 0.0
    if not target.requires_grad and (precomputed := native.value_loss(value.detach(), target, old, clip or 0.0, delta)):
        return PrecomputedGradient.apply(value, *precomputed)

    def distance(prediction: Tensor) -> Tensor:
        if kind == "l2":
            return F.mse_loss(prediction, target, reduction="none")
        return F.huber_loss(prediction, target, reduction="none", delta=huber_delta)

    loss = distance(value)
    if clip is None:
        return loss
    return torch.maximum(loss, distance(old_value + (value - old_value).clamp(-clip, clip)))
