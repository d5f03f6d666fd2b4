"""What the loss differentiates at every minibatch, as autograd nodes whose derivative is computed beside the value.

Over a minibatch's few numbers per agent, a node per operation costs more than the arithmetic. Each of these is one node
forward and one operation backward; on a CPU the forward pass is one compiled function (`agents.fused_ops.native`).
Tests hold both against autograd on the plain formula.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from agents.fused_ops import native

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class NormalLogProb(torch.autograd.Function):
    """Log-density of Gaussians whose deviation is softplus(x + bias) + min_std, summed over their dimensions.

    params float32 [..., 2 D] (loc, then x), raw [..., D], mask [D] or [A, D] or None -> [...].

    With z = (u - loc) / std:  d log p / d loc = z / std,  d log p / d std = (z^2 - 1) / std,  d std / dx = sigmoid(x).
    """

    @staticmethod
    def forward(ctx, params: Tensor, raw: Tensor, bias: float, min_std: float, mask: Tensor | None) -> Tensor:
        if results := native.normal(params, raw, bias, min_std, mask):
            ctx.save_for_backward(results[1])
            return results[0]
        loc, x = params.chunk(2, -1)
        x = x + bias
        std = F.softplus(x).add_(min_std)
        z = torch.sub(raw, loc).div_(std)
        square = z * z
        by_loc = z / std
        by_x = (square - 1.0).div_(std).mul_(x.sigmoid_())
        density = square.mul_(-0.5).sub_(std.log_()).sub_(LOG_SQRT_2PI)
        if mask is not None:
            density, by_loc, by_x = density.mul_(mask), by_loc.mul_(mask), by_x.mul_(mask)
        ctx.save_for_backward(torch.cat([by_loc, by_x], -1))
        return density.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return native.scale(gradient, ctx.saved_tensors[0]), None, None, None, None


class CategoricalTerms(torch.autograd.Function):
    """log p(choice) and entropy of categoricals: logits [..., C], choice int64 [..., 1] -> [...] twice.

    d log p(i) / d logit = onehot(i) - p,  d H / d logit = -p (log p + H). Several small operations: over the few
    choices of an action torch's own log_softmax takes ten times as long on a CPU.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
        if results := native.categorical(logits, choice):
            log_prob, entropy, p, log_p = results
            ctx.compiled = True
            ctx.save_for_backward(p, log_p, entropy, choice)
            return log_prob, entropy
        ctx.compiled = False
        shifted = logits - logits.amax(-1, keepdim=True)
        p = shifted.exp()
        total = p.sum(-1, keepdim=True)
        log_p = shifted.sub_(total.log())
        p = p.div_(total)
        entropy = -(p * log_p).sum(-1, keepdim=True)
        ctx.save_for_backward(p, log_p, entropy, choice)
        return log_p.gather(-1, choice).squeeze(-1), entropy.squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, by_log_prob: Tensor, by_entropy: Tensor) -> tuple[Tensor, None]:
        p, log_p, entropy, choice = ctx.saved_tensors
        if ctx.compiled:
            return native.categorical_back(choice, entropy, p, log_p, by_log_prob, by_entropy), None
        by_log_prob = by_log_prob.unsqueeze(-1)
        inner = (log_p + entropy).mul_(by_entropy.unsqueeze(-1)).add_(by_log_prob).mul_(p).neg_()
        return inner.scatter_add_(-1, choice, by_log_prob), None


class ClippedSurrogate(torch.autograd.Function):
    """Mean clipped surrogate and two diagnostics from one exponential; see
    `agents.algorithms.ppo_losses.clipped_surrogate`.

    d loss / d log ratio = -ratio * advantage where the unclipped term is the one that counts, else 0.
    """

    @staticmethod
    def forward(
        ctx,
        log_ratio: Tensor,
        advantage: Tensor,
        clip: float | Tensor,
        dual: float | None,
        weight: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if results := native.surrogate(log_ratio, advantage, clip, dual, weight):
            loss, approx_kl, clip_fraction, slopes = results
            ctx.save_for_backward(slopes)
            ctx.mark_non_differentiable(approx_kl, clip_fraction)
            return loss, approx_kl, clip_fraction
        ratio_minus_1 = log_ratio.expm1()
        ratio = ratio_minus_1 + 1.0
        free = ratio * advantage
        clipped = ratio.clamp_(1 - clip, 1 + clip).mul_(advantage)
        least = torch.minimum(free, clipped)
        counts = free <= clipped
        if dual is not None:
            bound = torch.where(advantage < 0, dual * advantage, -torch.inf)
            counts = counts & (free >= bound)
            least = torch.maximum(least, bound)
        if weight is not None:
            ctx.save_for_backward(torch.where(counts, free, 0.0).mul_(weight).neg_())
            approx_kl = ((ratio_minus_1 - log_ratio) * weight).sum()
            clip_fraction = ((ratio_minus_1.abs_() > clip) * weight).sum()
            ctx.mark_non_differentiable(approx_kl, clip_fraction)
            return (least * weight).sum().neg_(), approx_kl, clip_fraction
        loss = least.mean().neg_()
        ctx.save_for_backward(torch.where(counts, free, 0.0).div_(-free.numel()))
        approx_kl = (ratio_minus_1 - log_ratio).mean()
        clip_fraction = (ratio_minus_1.abs_() > clip).mean(dtype=torch.float32)
        ctx.mark_non_differentiable(approx_kl, clip_fraction)
        return loss, approx_kl, clip_fraction

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return gradient * ctx.saved_tensors[0], None, None, None, None


class PrecomputedGradient(torch.autograd.Function):
    """A function of x taken sample by sample, whose results and derivatives are there, both of x's shape."""

    @staticmethod
    def forward(ctx, x: Tensor, results: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(slopes)
        return results.view_as(results)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None
