"""The policy head of hybrid actions: a Gaussian for the continuous numbers beside categoricals for the choices.

Given the observation the two parts are independent, so that log-probability, entropy and divergences are sums (as in
H-PPO, Fan et al. 2019, section 3). Shapes: A agents in a group, C continuous numbers and K choices of an action.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.models.policy_heads.base import Head


class Hybrid(Head):
    """Parameters, noise and raw actions are those of the continuous head, then those of the discrete one.

    A raw action is float32 [..., A, C + K]; choices are whole numbers, exact in float32 up to 2^24. Masks of actions
    reach the choices' parameters, which come last (`agents.models.actor.allowed`).

    Args:
        continuous: head of the C continuous numbers.
        discrete: head of the K choices.
    """

    def __init__(self, continuous: Head, discrete: Head) -> None:
        super().__init__()
        self.continuous, self.discrete = continuous, discrete
        self.raw_size, self.raw_dtype = continuous.raw_size + discrete.raw_size, torch.float32
        self.n_features = continuous.n_features + discrete.n_features
        self.noise_size = continuous.noise_size + discrete.noise_size
        self.mask = None  # each part leaves its own padded dimensions out

    @property
    def name(self) -> str:
        return f"{type(self).__name__}({self.continuous.name})"

    @property
    def n_continuous(self) -> int:
        return self.continuous.raw_size

    def _params(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """The two heads' own, each in one piece, as the compiled terms of the loss want them."""
        first, second = params.split((self.continuous.n_features, self.discrete.n_features), -1)
        return first.contiguous(), second.contiguous()

    def _raws(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        first, second = raw.split((self.n_continuous, self.discrete.raw_size), -1)
        return first.contiguous(), second.to(self.discrete.raw_dtype)

    def _joined(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second.to(first.dtype)], -1)

    def noise(
        self, shape: Sequence[int], device: torch.device | str, generator: torch.Generator | None = None
    ) -> Tensor:
        parts = (head.noise(shape, device, generator) for head in (self.continuous, self.discrete))
        return torch.cat(list(parts), -1)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        of_first, of_second = self._params(params)
        first, second = noise.split((self.continuous.noise_size, self.discrete.noise_size), -1)
        return self._joined(self.continuous.draw(of_first, first), self.discrete.draw(of_second, second))

    def mode(self, params: Tensor) -> Tensor:
        of_first, of_second = self._params(params)
        return self._joined(self.continuous.mode(of_first), self.discrete.mode(of_second))

    def log_prob(self, params: Tensor, raw: Tensor) -> Tensor:
        (of_first, of_second), (first, second) = self._params(params), self._raws(raw)
        return self.continuous.log_prob(of_first, first) + self.discrete.log_prob(of_second, second)

    def choice_log_prob(self, params: Tensor, raw: Tensor) -> Tensor:
        return self.discrete.log_prob(self._params(params)[1], self._raws(raw)[1])

    def log_jacobian(self, raw: Tensor) -> Tensor:
        return self.continuous.log_jacobian(self._raws(raw)[0])

    def entropy(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        of_first, of_second = self._params(params)
        return self.continuous.entropy(of_first, generator) + self.discrete.entropy(of_second)

    def log_prob_and_entropy(self, params: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        (of_first, of_second), (first, second) = self._params(params), self._raws(raw)
        log_prob, entropy = self.discrete.log_prob_and_entropy(of_second, second)
        return self.continuous.log_prob(of_first, first) + log_prob, self.continuous.entropy(of_first) + entropy

    def to_env(self, raw: Tensor) -> Tensor:
        return self._joined(self.continuous.to_env(raw[..., : self.n_continuous]), raw[..., self.n_continuous :])
