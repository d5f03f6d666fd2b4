"""Running statistics with which returns, observations and rewards are normalised; all are saved in checkpoints.

Shapes: T time, E environments, A agents in a group, F features, `...` any leading dimensions.
"""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

ValueNormalization = Literal["none", "running", "popart"]
RewardNormalization = Literal["none", "std"]


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values`, summed over the processes of a distributed run; as they are where there is one process only."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


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
    def update(self, returns: Tensor) -> None:
        """Take the returns of a rollout, float32 of any shape, into the averages."""
        x = returns.double()
        one = x.new_ones(())
        count, *sums = sum_over_ranks(torch.stack([one * x.numel(), x.sum(), x.square().sum()])).unbind()
        self.moments.lerp_(torch.stack(sums) / count, 1 - self.beta)
        self.weight.lerp_(one, 1 - self.beta)

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, float64 scalars on the device."""
        seen = self.weight > 0
        mean, square = (self.moments / torch.where(seen, self.weight, 1.0)).unbind()
        var = (square - mean.square()).clamp(min=self.min_var)
        return mean, torch.where(seen, var, 1.0).sqrt()

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
