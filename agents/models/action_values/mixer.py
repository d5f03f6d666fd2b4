"""Mixers: the value of a team from the values of its agents, monotone in each.

Shapes: A agents, S features of the state, M hidden units, `...` any leading dimensions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.fused_ops import replay_terms


class SumMixer(nn.Module):
    """The sum of the agents' values (Sunehag et al. 2018, VDN)."""

    def forward(self, values: Tensor, state: Tensor) -> Tensor:
        """float32 [..., A], [..., S] -> [...]."""
        return values.sum(-1)


class MonotonicMixer(nn.Module):
    """A network of two layers whose weights the state gives, all of them >= 0 (Rashid et al. 2018, QMIX).

    The hypernetworks of the first layer are linear, the last bias is a network with one hidden layer, as in the paper.

    Args:
        n_agents: A.
        state_size: S.
        embed: M, hidden units of the mixing network.
    """

    def __init__(self, n_agents: int, state_size: int, embed: int = 32) -> None:
        super().__init__()
        self.n_agents, self.embed = n_agents, embed
        self.weights_1 = nn.Linear(state_size, embed * n_agents)
        self.bias_1 = nn.Linear(state_size, embed)
        self.weights_2 = nn.Linear(state_size, embed)
        self.bias_2 = nn.Sequential(nn.Linear(state_size, embed), nn.ReLU(), nn.Linear(embed, 1))

    def forward(self, values: Tensor, state: Tensor) -> Tensor:
        """float32 [..., A], [..., S] -> [...]."""
        weights_1, bias_1 = self.weights_1(state), self.bias_1(state)
        weights_2, bias_2 = self.weights_2(state), self.bias_2(state)
        mixed = replay_terms.mixed(values, weights_1, bias_1, weights_2, bias_2)
        if mixed is not None:
            return mixed
        first = weights_1.abs().unflatten(-1, (self.n_agents, self.embed))
        hidden = F.elu(torch.einsum("...a,...am->...m", values, first) + bias_1)
        return (hidden * weights_2.abs()).sum(-1) + bias_2.squeeze(-1)
