"""Advantages and returns: pure functions of tensors, without gradient and without host synchronisation.

Shapes: T time, E environments, A agents in a group, N ends of episodes.
"""

from typing import Literal

import torch
from torch import Tensor

from marl.core import distributed

Normalization = Literal["none", "batch", "agent"]


@torch.no_grad()
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    done: Tensor,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimate (Schulman et al. 2016, equation 16) over a rollout with episode ends.

        delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
        A_t     = delta_t + gamma lam (1 - done_t) A_{t+1}

    A terminated episode has no future, so its next value is dropped. A truncated one was merely cut off, so it is
    bootstrapped from the value of where it really ended. Both cut the recursion, and so does the rollout's end.
    Where agents' episodes end each on its own, each agent has a recursion of its own.

    Args:
        reward: float32 [T, E, A].
        value: V(s_t), float32 [T, E, A].
        next_value: V(s'_t) of the true next observation, before any auto-reset, float32 [T, E, A]: see
            `bootstrap`. Where terminated it is ignored, even if it is not finite.
        terminated: bool [T, E], or each agent's own [T, E, A].
        done: terminated or truncated, bool of the same shape.
        gamma, lam: discount and GAE lambda, in [0, 1].

    Returns:
        advantage [T, E, A], returns [T, E, A] (advantage + value: the critic's target), both float32.
    """
    terminated, done = (flag if flag.dim() == reward.dim() else flag.unsqueeze(-1) for flag in (terminated, done))
    target = next_value.masked_fill(terminated, 0.0).mul_(gamma).add_(reward)
    advantage = target.sub_(value)
    discount = (gamma * lam) * (~done).to(reward.dtype)
    rows, discounts = advantage.unbind(0), discount.unbind(0)
    for t in range(len(rows) - 2, -1, -1):
        rows[t].addcmul_(discounts[t], rows[t + 1])
    return advantage, advantage + value


@torch.no_grad()
def bootstrap(value: Tensor, final_value: Tensor, index: Tensor, cut: Tensor | None = None) -> Tensor:
    """Next values of a rollout from the values of what the policy saw, mended where an episode was cut off.

    After an auto-reset the next observation belongs to a new episode. At the N truncated steps its value is replaced by
    that of the true final observation. (At terminated steps `gae` drops the next value anyway.)

    Args:
        value: values of observation 0..T as the policy saw them, float32 [T + 1, E, A].
        final_value: values of the true final observations, float32 [N, A].
        index: where they belong, int64 [N], t * E + e (`truncated.flatten().nonzero().squeeze(-1)`).
        cut: who was really cut off in those frames, bool [T, E] or [T, E, A]: the others keep their next value, for
            their episode goes on. None = all.

    Returns:
        float32 [T, E, A].
    """
    if cut is not None:
        there = cut.flatten(0, 1).index_select(0, index)
        there = there if cut.dim() == value.dim() else there.unsqueeze(-1)
        final_value = torch.where(there, final_value, value[1:].flatten(0, 1).index_select(0, index))
    return value[1:].flatten(0, 1).index_copy(0, index, final_value).view_as(value[1:])


@torch.no_grad()
def normalize_advantage(
    advantage: Tensor, mode: Normalization, eps: float = 1e-6, alive: Tensor | None = None
) -> Tensor:
    """Advantages with mean 0 and standard deviation 1.

    Args:
        advantage: float32 [..., A].
        mode: none = as they are; batch = one mean and deviation for all; agent = one for each agent.
        eps: added to the deviation, so that constant advantages become 0 and not NaN.
        alive: bool [..., A]: mean and deviation are those of the living; None = all.

    Returns:
        float32 [..., A].
    """
    if mode == "none":
        return advantage
    dims = tuple(range(advantage.dim() - 1)) if mode == "agent" else tuple(range(advantage.dim()))
    if alive is not None:
        count, total = distributed.total(
            torch.stack([x.sum(dims, keepdim=True) for x in (alive.float(), advantage * alive)])
        )
        centred = advantage - total / count.clamp(min=1)
        square = distributed.total((centred.square() * alive).sum(dims, keepdim=True))
        return centred / ((square / count.clamp(min=1)).sqrt() + eps)
    # The population's deviation (correction 0) is defined for a single element too.
    var, mean = torch.var_mean(advantage, dims, correction=0, keepdim=True)
    if distributed.world() > 1:  # every process holds as many: the variance of all is that within and between them
        local_mean, mean = mean, distributed.mean(mean)
        var = distributed.mean(var + (local_mean - mean).square())
    return (advantage - mean) / (var.sqrt() + eps)


@torch.no_grad()
def explained_variance(value: Tensor, returns: Tensor, counts: Tensor | None = None) -> Tensor:
    """1 - Var(returns - value) / Var(returns): 1 = perfect, 0 = no better than a constant, negative = worse.

    Args:
        value: predictions, float32, any shape.
        returns: what they predict, the same shape.
        counts: bool of the same shape, which of them are looked at; None = all.

    Returns:
        float32 scalar on the device; NaN where the returns don't vary, for then it is undefined.
    """
    variance, rest = (_variance(x, counts) for x in (returns, returns - value))
    return torch.where(variance > 0, 1 - rest / variance, torch.nan)


def _variance(x: Tensor, counts: Tensor | None) -> Tensor:
    """The population's variance of those that count."""
    if counts is None:
        return x.var(correction=0)
    number = counts.sum().clamp(min=1)
    centred = x - x.masked_fill(~counts, 0.0).sum() / number
    return centred.square().masked_fill(~counts, 0.0).sum() / number
