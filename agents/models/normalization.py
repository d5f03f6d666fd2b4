"""Running statistics with which returns, observations and rewards are normalised; all are saved in checkpoints.

Shapes: T time, E environments, A agents in a group, F features, `...` any leading dimensions.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from marl.core import distributed

ValueNormalization = Literal["none", "running", "popart"]
RewardNormalization = Literal["none", "std"]


class ValueNorm(nn.Module):
    """Debiased exponential averages of the returns' first two moments (Yu et al. 2022, section 5.1 and their code).

        m_k  = beta m_{k-1} + (1 - beta) mean(R)        s_k = beta s_{k-1} + (1 - beta) mean(R^2)
        mean = m_k / (1 - beta^k)                       var = max(s_k / (1 - beta^k) - mean^2, min_var)

    The critic's network predicts (R - mean) / sqrt(var). One update per rollout, with all its returns; before the
    first, mean 0 and deviation 1. Sums are float64, so that a large mean leaves the variance its digits.

    Args:
        beta: weight of the past per update, in [0, 1); 0.99999 comes close to the average of all rollouts so far.
        min_var: floor of the variance, in squared units of the return.
    """

    def __init__(self, beta: float = 0.99999, min_var: float = 1e-2) -> None:
        super().__init__()
        self.beta, self.min_var = beta, min_var
        self.register_buffer("moments", torch.zeros(2, dtype=torch.float64))  # m, s
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))  # 1 - beta^k

    @torch.no_grad()
    def update(self, returns: Tensor, counts: Tensor | None = None) -> None:
        """Take the returns of a rollout, float32 of any shape, into the averages.

        counts: bool of the same shape, which of them count; None = all. Where none does, nothing is learned.
        """
        x = returns.double() if counts is None else returns.double().masked_fill(~counts, 0.0)
        one = x.new_ones(())
        number = one * x.numel() if counts is None else counts.sum().double()
        count, *sums = distributed.total(torch.stack([number, x.sum(), x.square().sum()])).unbind()
        share = 1 - self.beta if counts is None else (1 - self.beta) * (count > 0).double()
        self.moments.lerp_(torch.stack(sums) / count.clamp(min=1), share)
        self.weight.lerp_(one, share)

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float64 scalars on the device."""
        updated = self.weight > 0
        mean, square = (self.moments / torch.where(updated, self.weight, 1.0)).unbind()
        var = (square - mean.square()).clamp(min=self.min_var)
        return mean, torch.where(updated, var, 1.0).sqrt()

    def normalize(self, x: Tensor) -> Tensor:
        """(x - mean) / std: float32 of any shape, from units of the return to those of the critic's network."""
        mean, std = self.mean_std()
        return (x - mean.float()) / std.float()

    def denormalize(self, x: Tensor) -> Tensor:
        """x * std + mean, the inverse of `normalize`."""
        mean, std = self.mean_std()
        return x * std.float() + mean.float()


@torch.no_grad()
def rescale(layer: nn.Linear, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> None:
    """PopArt (van Hasselt et al. 2016, proposition 1): keep `layer`'s denormalised outputs as the statistics move.

        w' = w std / std'        b' = (std b + mean - mean') / std'

    Args:
        layer: the critic's output layer, with a bias.
        old, new: mean and standard deviation before and after, scalars.
    """
    (mean, std), (mean_new, std_new) = old, new
    layer.weight.copy_(layer.weight * (std / std_new))
    layer.bias.copy_((layer.bias * std + mean - mean_new) / std_new)


class RunningMoments(nn.Module):
    """Mean and variance of everything seen, feature by feature, merged batch by batch (Chan et al. 1983).

    With n new rows, s1 = sum(x - mean) and s2 = sum((x - mean)^2) about the mean so far, and N rows seen before:
    mean' = mean + s1 / (N + n) and M2' = M2 + s2 - s1^2 / (N + n), where var = M2 / N. All float64.

    Args:
        size: F.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def update(self, x: Tensor, counts: Tensor | None = None) -> None:
        """Merge float32 [..., F]. counts: bool [...], which rows are seen; None = all."""
        rows = x.reshape(-1, x.shape[-1]).double() - self.mean
        count = rows.new_full((1,), len(rows))
        if counts is not None:
            seen = counts.reshape(-1, 1)
            rows, count = rows.masked_fill(~seen, 0.0), seen.sum(0).double()
        sums = distributed.total(torch.cat([count, rows.sum(0), rows.square().sum(0)]))
        n, s1, s2 = sums.split([1, len(self.mean), len(self.mean)])
        self.count.add_(n[0])
        move = s1 / self.count.clamp(min=1)
        self.mean.add_(move)
        self.m2.add_(s2 - s1 * move)

    @property
    def var(self) -> Tensor:
        """Population variance, float64 [F]; 1 before the first update."""
        return torch.where(self.count > 0, self.m2 / self.count.clamp(min=1), 1.0)


class ObservationNorm(RunningMoments):
    """x -> clip((x - mean) / sqrt(var + eps), -limit, limit), as Stable-Baselines3's VecNormalize does it.

    The statistics stand still until `update`: while a rollout is played, trained on and evaluated its policy is one
    and the same function. Before the first update x is only clipped.

    Args:
        size: F.
        limit: in standard deviations.
    """

    EPS = 1e-8

    def __init__(self, size: int, limit: float = 10.0) -> None:
        super().__init__(size)
        self.limit = limit
        # What forward needs, float32 and ready: x * scale + shift.
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("shift", torch.zeros(size))

    @torch.no_grad()
    def update(self, x: Tensor, counts: Tensor | None = None) -> None:
        """As `RunningMoments`."""
        super().update(x, counts)
        scale = (self.var + self.EPS).rsqrt()
        self.scale.copy_(scale)
        self.shift.copy_(-self.mean * scale)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [..., F] -> [..., F]."""
        return torch.addcmul(self.shift, x, self.scale).clamp(-self.limit, self.limit)


def reward_norms(n_envs: int, n_agents: Mapping[str, int], algos: Mapping[str, Any]) -> nn.ModuleDict:
    """{group: `RewardNorm`} of the groups whose algorithm asks for it; see there for the arguments."""
    normalized = {name: algo for name, algo in algos.items() if algo.reward_norm == "std"}
    return nn.ModuleDict({n: RewardNorm(n_envs, n_agents[n], a.gamma, a.reward_limit) for n, a in normalized.items()})


class RewardNorm(nn.Module):
    """Rewards over the running deviation of the discounted return (Engstrom et al. 2020, section 3; VecNormalize).

        G_t = r_t + gamma (1 - done_{t-1}) G_{t-1}        r_t -> clip(r_t / sqrt(Var(G) + eps), -limit, limit)

    G looks back, over the episode so far; the mean is not subtracted, which would change what is optimal.

    Args:
        n_envs, n_agents: E and A.
        gamma: discount.
        limit: of the scaled reward.
    """

    EPS = 1e-8

    def __init__(self, n_envs: int, n_agents: int, gamma: float, limit: float = 10.0) -> None:
        super().__init__()
        self.gamma, self.limit = gamma, limit
        self.moments = RunningMoments(1)
        self.register_buffer("carry", torch.zeros(n_envs, n_agents))  # gamma (1 - done) G at the last rollout's end

    def restart(self) -> None:
        """All running episodes were given up; what was learned of the returns stays."""
        self.carry.zero_()

    @torch.no_grad()
    def forward(self, reward: Tensor, done: Tensor, alive: Tensor | None = None, turn: Tensor | None = None) -> Tensor:
        """Scaled rewards of a rollout, which itself counts: reward float32 [T, E, A], done bool [T, E] -> [T, E, A].

        done: or each agent's own, [T, E, A]. alive: bool [T, E, A], whose returns are looked at; None = all.
        turn: bool [T + 1, E, A], who acts: G is discounted from own turn to own turn and looked at there; None = all.
        """
        discount = (~done if done.dim() == reward.dim() else ~done.unsqueeze(-1)).to(reward.dtype)
        discount = self.gamma * discount if turn is None else discount * torch.where(turn[1:], self.gamma, 1.0)
        counts = alive if turn is None else turn[:-1] if alive is None else turn[:-1] & alive
        if alive is not None:
            reward = reward.masked_fill(~alive, 0.0)
        returns, past = torch.empty_like(reward), self.carry
        for t in range(len(reward)):
            torch.add(reward[t], past, out=returns[t])
            past = discount[t] * returns[t]
        self.carry.copy_(past)
        self.moments.update(returns.unsqueeze(-1), counts)
        scale = (self.moments.var + self.EPS).rsqrt().float()
        return (reward * scale).clamp(-self.limit, self.limit)
