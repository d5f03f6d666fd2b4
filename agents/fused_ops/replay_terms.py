"""The terms of losses of replayed steps as autograd nodes, each pass one compiled function (`replay_terms.cpp`).

For ordinary float32 tensors on a CPU; each gives None where it does not apply: there torch's operations do it. Shapes:
N critics, M target critics, B minibatch rows, A agents, D action dimensions.
"""

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from agents.fused_ops.calls import places, run, usable
from marl.native import library
from marl.native.compiler import FLAGS
from marl.native.library import NUMBER, POINTER, REAL


def td_error(
    q: Tensor,
    values: Tensor,
    penalty: Tensor | None,
    reward: Tensor,
    scale: float,
    terminated: Tensor,
    discount: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """Mean squared error of q [N, B, ...], summed over N, and the mean of q, scalars.

    Against scale reward + discount (1 - terminated) (min over M of values - penalty): values [M, B, ...], penalty and
    reward [B, ...], terminated bool [B] or [B, ...], discount [B].
    """
    fits = q.shape[1:] == values.shape[1:] == reward.shape and discount.shape == reward.shape[:1]
    ends = terminated.shape in (reward.shape, reward.shape[:1]) and terminated.is_contiguous()
    penalised = penalty is None or penalty.shape == reward.shape
    if not (fits and ends and penalised and usable(functions, q, values, penalty, reward, discount)):
        return None
    return _TDError.apply(q, values, penalty, reward, scale, terminated, discount)


def soft(
    q: Tensor,
    next_values: Tensor,
    next_log_prob: Tensor,
    values: Tensor,
    log_prob: Tensor,
    log_temperature: Tensor,
    reward: Tensor,
    scale: float,
    terminated: Tensor,
    discount: Tensor,
    target_entropy: float,
    learns: bool,
) -> tuple[Tensor, Tensor] | None:
    """The loss of soft actor-critic, a scalar, and six figures of it, float32 [6], without gradient.

    q, values [N, B, A]: of the actions taken and of those drawn. next_values [M, B, A]. Their smallest counts. Both
    log_prob [B, A]; learns: whether the temperature does; the rest as for `td_error`. Figures: the critics', the
    actors' and the temperature's part of the loss, mean of q, entropy, temperature.
    """
    fits = q.shape == values.shape and q.shape[1:] == next_values.shape[1:] == reward.shape
    densities = log_prob.shape == next_log_prob.shape == reward.shape and log_temperature.dim() == 0
    ends = terminated.shape in (reward.shape, reward.shape[:1]) and terminated.is_contiguous()
    rest = next_values, next_log_prob, values, log_prob, log_temperature.detach(), reward, discount
    if not (fits and densities and ends and discount.shape == reward.shape[:1] and usable(functions, q, *rest)):
        return None
    fixed = next_values, next_log_prob, reward, terminated, discount
    return _Soft.apply(q, values, log_prob, log_temperature, fixed, scale, target_entropy, learns)


def squashed(
    params: Tensor, noise: Tensor, bias: float, min_std: float, mask: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """tanh of Gaussian draws, [..., D], and their log-density in that unit, [...].

    params [..., 2 D] (loc, then x; the deviation is softplus(x + bias) + min_std), noise [..., D], mask [D] or [A, D].
    """
    D, agents = noise.shape[-1], 1 if mask is None or mask.dim() == 1 else mask.shape[0]
    fits = params.shape == (*noise.shape[:-1], 2 * D) and (agents == 1 or params.shape[-2] == agents)
    if not fits or not usable(functions, params, noise, mask) or mask is not None and mask.shape[-1] != D:
        return None
    return _Squashed.apply(params, noise, bias, min_std, mask)


def mixed(values: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor | None:
    """QMIX's mixer, b2 + |w2| . elu(b1 + values |w1|): values [B, A], w1 [B, A M], b1, w2 [B, M], b2 [B, 1] -> [B]."""
    B, M = b1.shape if b1.dim() == 2 else (0, 0)
    shapes = (B, values.shape[-1] * M), (B, M), (B, 1)
    fits = values.dim() == 2 and (w1.shape, w2.shape, b2.shape) == shapes and len(values) == B
    if not fits or not usable(functions, values, w1, b1, w2, b2):
        return None
    return _Mixed.apply(values, w1, b1, w2, b2)


class _TDError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, values, penalty, reward, scale, terminated, discount) -> tuple[Tensor, Tensor]:
        rows, n = len(reward), reward.numel()
        loss, mean, slopes = q.new_empty(()), q.new_empty(()), torch.empty_like(q)
        numbers = (len(q), rows, n // max(rows, 1), len(values), scale, terminated.dim() > 1)
        run(functions(), "td_error", numbers, q, values, penalty, reward, terminated, discount, loss, mean, slopes)
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(mean)
        return loss, mean

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return gradient * ctx.saved_tensors[0], None, None, None, None, None, None


class _Soft(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, values, log_prob, log_temperature, fixed, scale, wanted, learns) -> tuple[Tensor, Tensor]:
        next_values, next_log_prob, reward, terminated, discount = fixed
        loss, figures = q.new_empty(()), q.new_empty(6)
        slopes = q.new_empty(2 * q.numel() + log_prob.numel() + 1)
        rows, n = len(reward), reward.numel()
        numbers = len(q), rows, n // max(rows, 1), len(next_values), scale, terminated.dim() > 1, learns, wanted
        given = q, next_values, next_log_prob, values, log_prob, log_temperature, reward, terminated, discount
        run(functions(), "soft", numbers, *given, loss, figures, slopes)
        ctx.save_for_backward(slopes)
        ctx.shapes = q.shape, values.shape, log_prob.shape, log_temperature.shape
        ctx.mark_non_differentiable(figures)
        return loss, figures

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        by = (gradient * ctx.saved_tensors[0]).split([shape.numel() for shape in ctx.shapes])
        return (*[one.view(shape) for one, shape in zip(by, ctx.shapes, strict=True)], None, None, None, None)


class _Squashed(torch.autograd.Function):
    """With u = loc + std noise, a = tanh u: da/du = 1 - a^2, d log p/du = 2 a, d log p/d std = -1 / std beside that."""

    @staticmethod
    def forward(ctx, params, noise, bias, min_std, mask) -> tuple[Tensor, Tensor]:
        action, log_prob = torch.empty_like(noise), noise.new_empty(noise.shape[:-1])
        std, slopes = torch.empty_like(noise), torch.empty_like(noise)
        ctx.numbers = _sizes(noise, mask)
        run(functions(), "squashed", (*ctx.numbers, bias, min_std), params, noise, mask, action, log_prob, std, slopes)
        ctx.save_for_backward(noise, mask, action, std, slopes)
        return action, log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx, by_action: Tensor, by_log_prob: Tensor) -> tuple[Tensor | None, ...]:
        noise, D = ctx.saved_tensors[0], ctx.numbers[1]
        out = noise.new_empty((*noise.shape[:-1], 2 * D))
        by = by_action.contiguous(), by_log_prob.contiguous()
        run(functions(), "squashed_back", ctx.numbers, *ctx.saved_tensors, *by, out)
        return out, None, None, None, None


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, w1, b1, w2, b2) -> Tensor:
        out = values.new_empty(len(values))
        ctx.numbers = (*values.shape, b1.shape[1])
        run(functions(), "mixed", ctx.numbers, values, w1, b1, w2, b2, out)
        ctx.save_for_backward(values, w1, b1, w2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, ...]:
        saved, by = ctx.saved_tensors, gradient.contiguous()
        outs = [torch.empty_like(tensor) for tensor in saved]
        run(functions(), "mixed_back", ctx.numbers, *saved, by, *outs)
        return (*outs, by.unsqueeze(-1))


def _sizes(noise: Tensor, mask: Tensor | None) -> tuple[int, int, int]:
    D = noise.shape[-1]
    return noise.numel() // D, D, 1 if mask is None or mask.dim() == 1 else mask.shape[0]


def _check(lib: ctypes.CDLL) -> None:
    """Hold the functions against torch on a few numbers. Raises RuntimeError."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q, values, reward, over = normal(2, 7, 3), normal(2, 7, 3), normal(7, 3), normal(7) > 0
    discount, loss, mean, slopes = normal(7), torch.empty(()), torch.empty(()), torch.empty(2, 7, 3)
    lib.td_error(2, 7, 3, 2, 0.5, 0, *places(q, values, reward, reward, over, discount, loss, mean, slopes))
    ahead, drawn, log_prob, warmth = normal(2, 7, 3), normal(2, 7, 3), normal(7, 3), normal(1).squeeze()
    soft_loss, figures, soft_slopes = torch.empty(()), torch.empty(6), torch.empty(2 * 42 + 21 + 1)
    given = places(q, ahead, reward, drawn, log_prob, warmth, reward, over, discount, soft_loss, figures, soft_slopes)
    lib.soft(2, 7, 3, 2, 0.5, 0, 1, -1.5, *given)
    params, noise, by = 3 * normal(37, 4), normal(37, 2), (normal(37, 2), normal(37))
    outs = [torch.empty(37, 2), torch.empty(37), torch.empty(37, 2), torch.empty(37, 2)]
    lib.squashed(37, 2, 1, 0.5, 0.01, *places(params, noise, None, *outs))
    by_params = torch.empty(37, 4)
    lib.squashed_back(37, 2, 1, *places(noise, None, outs[0], *outs[2:], *by, by_params))
    with torch.enable_grad():
        p, r = params.clone().requires_grad_(), q.clone().requires_grad_()
        future = (values.amin(0) - reward).masked_fill(over.unsqueeze(-1), 0.0)
        errors = 2 * (r - (0.5 * reward + discount.unsqueeze(-1) * future)).square().mean()
        std = F.softplus(p[:, 2:] + 0.5) + 0.01
        u = p[:, :2] + std * noise
        density = -0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)
        density = (density - 2 * (math.log(2) - u - F.softplus(-2 * u))).sum(-1)
        (slope,) = torch.autograd.grad(errors, r)
        leaves = [tensor.clone().requires_grad_() for tensor in (q, drawn, log_prob, warmth)]
        soft_future = (ahead.amin(0) - warmth.exp() * reward).masked_fill(over.unsqueeze(-1), 0.0)
        parts = [2 * (leaves[0] - (0.5 * reward + discount.unsqueeze(-1) * soft_future)).square().mean()]
        parts += [-(leaves[1].amin(0) - warmth.exp() * leaves[2]).mean(), leaves[3] * (1.5 - log_prob.mean())]
        expected_figures = torch.stack([*parts, q.mean(), -log_prob.mean(), warmth.exp()]).detach()
        expected_slopes = torch.cat([g.flatten() for g in torch.autograd.grad(sum(parts), leaves)])
        (back,) = torch.autograd.grad([u.tanh(), density], p, by)
    wide = [normal(9, 3), normal(9, 60), normal(9, 20), normal(9, 20), normal(9)]  # values, w1, b1, w2, b2
    out, backs, by_out = torch.empty(9), [torch.empty_like(tensor) for tensor in wide[:4]], normal(9)
    lib.mixed(9, 3, 20, *places(*wide, out))
    lib.mixed_back(9, 3, 20, *places(*wide[:4], by_out, *backs))
    with torch.enable_grad():
        leaves = [tensor.clone().requires_grad_() for tensor in wide]
        hidden = F.elu((leaves[0].unsqueeze(-1) * leaves[1].abs().view(9, 3, 20)).sum(1) + leaves[2])
        mix = (hidden * leaves[3].abs()).sum(-1) + leaves[4]
        expected = torch.autograd.grad(mix, leaves[:4], by_out)
    pairs = [(loss, errors), (mean, q.mean()), (slopes, slope), (outs[0], u.tanh()), (outs[1], density)]
    pairs += [(soft_loss, sum(parts)), (figures, expected_figures), (soft_slopes, expected_slopes)]
    pairs += [(by_params, back), (out, mix), *zip(backs, expected, strict=True)]
    if not all(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5) for ours, theirs in pairs):
        raise RuntimeError("it differs from torch")


functions = library.Library(
    [Path(__file__).with_name("replay_terms.cpp")],
    FLAGS,
    {
        "width": ([], NUMBER),
        "td_error": ([NUMBER] * 4 + [REAL, NUMBER] + [POINTER] * 9, None),
        "soft": ([NUMBER] * 4 + [REAL] + [NUMBER] * 2 + [REAL] + [POINTER] * 12, None),
        "squashed": ([NUMBER] * 3 + [REAL] * 2 + [POINTER] * 7, None),
        "mixed": ([NUMBER] * 3 + [POINTER] * 6, None),
        "mixed_back": ([NUMBER] * 3 + [POINTER] * 9, None),
        "squashed_back": ([NUMBER] * 3 + [POINTER] * 8, None),
    },
    _check,
    "losses of replayed steps run operation by operation, not by compiled functions",
)
