"""The terms of PPO's loss by compiled functions (`ops.cpp`), for ordinary float32 tensors on a CPU.

Each takes what its node in `agents.fused_ops.autograd` takes, and gives None where it does not apply: there torch's
operations do it. Shapes: n samples (all leading dimensions together), D action dimensions, C choices.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.fused_ops.calls import places, run, usable
from marl.native import library
from marl.native.compiler import FLAGS
from marl.native.library import NUMBER, POINTER, REAL

CHOICES = 256  # at most: W samples' choices lie on the stack


def normal(params: Tensor, raw: Tensor, bias: float, min_std: float, mask: Tensor | None) -> tuple[Tensor, ...] | None:
    """log_prob [...] and its derivatives by params [..., 2 D]."""
    if not usable(functions, params, raw, mask) or raw.shape[:-1] != params.shape[:-1] or raw.shape[-1] > CHOICES:
        return None
    D, agents = raw.shape[-1], 1 if mask is None or mask.dim() == 1 else mask.shape[0]
    if mask is not None and (mask.shape[-1] != D or mask.dim() > 1 and params.shape[-2] != agents):
        return None
    x = params[..., D:] + bias
    std = F.softplus(x).add_(min_std)
    n, half, slopes = raw.numel() // D, torch.empty_like(raw), torch.empty_like(params)
    run(functions(), "normal", (n, D, agents), params, raw, std, x.sigmoid_(), mask, half, slopes)
    log_prob = raw.new_empty(raw.shape[:-1])
    run(functions(), "normal_sum", (n, D, agents), half, std.log_(), mask, log_prob)
    return log_prob, slopes


def categorical(logits: Tensor, choice: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """log_prob and entropy [...], then p and log p [..., C] for `categorical_back`."""
    C = logits.shape[-1]
    fits = choice.shape == (*logits.shape[:-1], 1) and choice.dtype == torch.int64 and choice.is_contiguous()
    if not fits or C > CHOICES or not usable(functions, logits):
        return None
    outs = [logits.new_empty(logits.shape[:-1]) for _ in range(2)] + [torch.empty_like(logits) for _ in range(2)]
    run(functions(), "categorical", (outs[0].numel(), C), logits, choice, *outs)
    return tuple(outs)


def categorical_back(choice: Tensor, entropy: Tensor, p: Tensor, log_p: Tensor, *by: Tensor) -> Tensor:
    """Gradient of the logits [..., C], given those of log_prob and entropy [...]; after `categorical`."""
    out, by = torch.empty_like(p), [g.contiguous() for g in by]
    run(functions(), "categorical_back", (entropy.numel(), p.shape[-1]), choice, entropy, p, log_p, *by, out)
    return out


def scale(factors: Tensor, numbers: Tensor) -> Tensor:
    """factors [...] times numbers [..., F]: torch multiplies short rows one by one."""
    if not usable(functions, numbers) or not library.is_cpu_float32(factors) or factors.shape != numbers.shape[:-1]:
        return factors.unsqueeze(-1) * numbers
    out = torch.empty_like(numbers)
    run(functions(), "scale", (factors.numel(), numbers.shape[-1]), factors.contiguous(), numbers, out)
    return out


def surrogate(
    log_ratio: Tensor, advantage: Tensor, clip: float | Tensor, dual: float | None, weight: Tensor | None
) -> tuple[Tensor, ...] | None:
    """loss, approx_kl and clip_fraction; the loss's derivatives by log_ratio, of its shape."""
    scalar = clip if isinstance(clip, Tensor) else None
    if not usable(functions, log_ratio, advantage, weight, scalar) or log_ratio.shape != advantage.shape:
        return None
    if weight is not None and weight.shape != log_ratio.shape:
        return None
    outs = *[log_ratio.new_empty(()) for _ in range(3)], torch.empty_like(log_ratio)
    bounds = (0.0, 0.0, 0.0) if scalar is not None else (1 - clip, 1 + clip, clip)
    kernel_args = log_ratio.numel(), *bounds, dual or 0.0
    run(functions(), "surrogate", kernel_args, log_ratio, log_ratio.expm1(), advantage, weight, scalar, *outs)
    return outs


def value_loss(
    value: Tensor, target: Tensor, old: Tensor | None, clip: float, delta: float
) -> tuple[Tensor, Tensor] | None:
    """The loss per sample and its derivative by `value`; delta 0 = squared, else Huber's."""
    fits = value.shape == target.shape and (old is None or old.shape == value.shape)
    if not fits or not usable(functions, value, target, old):
        return None
    loss, slopes = torch.empty_like(value), torch.empty_like(value)
    run(functions(), "value_loss", (value.numel(), clip, delta), value, target, old, loss, slopes)
    return loss, slopes


def _check(library: ctypes.CDLL) -> None:
    """Hold the functions against torch on a few numbers. Raises RuntimeError."""
    generator = torch.Generator().manual_seed(0)
    params, raw = torch.randn(37, 4, generator=generator), torch.randn(37, 2, generator=generator)
    x = params[:, 2:] + 0.5
    std, half = F.softplus(x) + 0.01, torch.empty(37, 2)
    slopes, log_prob = torch.empty(37, 4), torch.empty(37)
    library.normal(37, 2, 1, *places(params, raw, std, x.sigmoid_(), None, half, slopes))
    library.normal_sum(37, 2, 1, *places(half, std.log_(), None, log_prob))
    choice, by = torch.randint(4, (37,), generator=generator), [torch.ones(37), torch.full((37,), 0.5)]
    outs, by_logit = [torch.empty(37), torch.empty(37), torch.empty(37, 4), torch.empty(37, 4)], torch.empty(37, 4)
    library.categorical(37, 4, *places(params, choice, *outs))
    library.categorical_back(37, 4, *places(choice, *outs[1:], *by, by_logit))
    rows = torch.empty(37, 4)
    library.scale(37, 4, *places(outs[1], params, rows))
    means, by_ratio = [torch.empty(()) for _ in range(3)], torch.empty(37)
    x, a = 0.3 * params[:, 0].contiguous(), raw[:, 0].contiguous()
    less = x.expm1()
    library.surrogate(37, 0.8, 1.2, 0.2, 0.0, *places(x, less, a, None, None, *means, by_ratio))
    errors, by_value = torch.empty(37), torch.empty(37)
    library.value_loss(37, 0.0, 0.0, *places(x, a, None, errors, by_value))
    with torch.enable_grad():
        p, r = (value.clone().requires_grad_() for value in (params, x))
        gaussian = torch.distributions.Normal(p[:, :2], F.softplus(p[:, 2:] + 0.5) + 0.01, validate_args=False)
        density, log_p, ratio = gaussian.log_prob(raw).sum(-1), p.log_softmax(-1), r.exp()
        chosen, entropy = log_p[range(37), choice], -(log_p.exp() * log_p).sum(-1)
        loss, squares = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).mean(), (r - a).square()
        pairs = [(log_prob, density), (slopes, torch.autograd.grad(density.sum(), p)[0])]
        pairs += zip(outs, (chosen, entropy, log_p.exp(), log_p), strict=True)
        pairs += [(by_logit, torch.autograd.grad((chosen + 0.5 * entropy).sum(), p)[0])]
        pairs += [(rows, outs[1].unsqueeze(-1) * params), (means[0], loss), (errors, squares)]
        pairs += [(by_ratio, torch.autograd.grad(loss, r)[0]), (by_value, torch.autograd.grad(squares.sum(), r)[0])]
    if not all(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5) for ours, theirs in pairs):
        raise RuntimeError("it differs from torch")


functions = library.Library(
    [Path(__file__).with_name("ops.cpp")],
    FLAGS,
    {
        "normal": ([NUMBER] * 3 + [POINTER] * 7, None),
        "normal_sum": ([NUMBER] * 3 + [POINTER] * 4, None),
        "categorical": ([NUMBER] * 2 + [POINTER] * 6, None),
        "categorical_back": ([NUMBER] * 2 + [POINTER] * 7, None),
        "scale": ([NUMBER] * 2 + [POINTER] * 3, None),
        "surrogate": ([NUMBER] + [REAL] * 4 + [POINTER] * 9, None),
        "value_loss": ([NUMBER] + [REAL] * 2 + [POINTER] * 5, None),
    },
    _check,
    "PPO's loss runs operation by operation, not by compiled functions",
)
