"""What every policy head offers; `agents.models.heads` has them and says what a raw action is.

Shapes: A agents in a group (second-last dimension), D action dimensions, N noise size, `...` any leading dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from envs.spec import ActionSpec

# The logit, or value, of a choice that does not exist: its probability is 0; finite, so that 0 * log 0 is no NaN.
ABSENT = -1e30


class Head(nn.Module, ABC):
    """What every policy head offers. No method synchronises with the host; all compile into one graph."""

    n_features: int  # network outputs per agent
    raw_size: int  # D, the size of a raw action
    raw_dtype: torch.dtype  # of a raw action
    noise_size: int  # N, random numbers per agent and action
    mask: Tensor | None  # float32 [A, D]: 0 where a narrower agent was padded; None = nothing padded
    choice_meaning = "log-probability"  # of what `choice_preference` gives

    def _set_mask(self, spec: ActionSpec) -> None:
        self.register_buffer("mask", None if spec.mask is None else spec.mask.float(), persistent=False)

    def _sum(self, x: Tensor) -> Tensor:
        """Sum over the action dimensions, padded ones left out: [..., A, D] -> [..., A]."""
        return (x if self.mask is None else x * self.mask).sum(-1)

    @property
    def name(self) -> str:
        """Heads of one name have raw actions of one meaning."""
        return type(self).__name__

    @property
    def n_continuous(self) -> int:
        """C, how many of a raw action's numbers are continuous; they come first, choices after them."""
        return self.raw_size if self.raw_dtype.is_floating_point else 0

    def sample(
        self, params: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draw an action.

        Args:
            params: float [..., A, n_features].
            generator: source of the randomness; None is the device's default generator.
            noise: float32 [..., A, noise_size] drawn with `noise()` beforehand; `generator` is not used then.

        Returns:
            raw action, raw_dtype [..., A, D], without gradient; its log-probability, float32 [..., A].
        """
        if noise is None:
            noise = self.noise(params.shape[:-1], params.device, generator)
        raw = self.draw(params, noise).detach()
        return raw, self.log_prob(params, raw)

    @abstractmethod
    def noise(
        self, shape: Sequence[int], device: torch.device | str, generator: torch.Generator | None = None
    ) -> Tensor:
        """Random numbers for `sample`: float32 [*shape, noise_size], where shape ends with A."""

    @abstractmethod
    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """The raw action [..., A, D] that these random numbers [..., A, N] give."""

    @abstractmethod
    def mode(self, params: Tensor) -> Tensor:
        """The deterministic action: raw [..., A, D] (the Gaussian's mean, the likeliest choice)."""

    @abstractmethod
    def log_prob(self, params: Tensor, raw: Tensor) -> Tensor:
        """Log-density of the raw action: params [..., A, n_features], raw [..., A, D] -> float32 [..., A]."""

    def imitation_error(self, params: Tensor, raw: Tensor) -> Tensor:
        """How far the policy is from a teacher's raw action: params, raw as in `log_prob` -> float32 [..., A]."""
        return -self.log_prob(params, raw)

    @abstractmethod
    def log_jacobian(self, raw: Tensor) -> Tensor:
        """log |d to_env(raw) / d raw|, float32 [..., A]: to be subtracted from log_prob (see the module)."""

    @abstractmethod
    def entropy(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Entropy of the policy, differentiable, float32 [..., A]."""

    def log_prob_and_entropy(self, params: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Both at once, where they share work."""
        return self.log_prob(params, raw), self.entropy(params)

    @abstractmethod
    def to_env(self, raw: Tensor) -> Tensor:
        """The action as `Env.step` takes it: float32 [..., A, D] in [low, high], or int64 [..., A, D]."""

    def choice_log_prob(self, params: Tensor, raw: Tensor) -> Tensor:
        """As `log_prob`, of the choices alone; of heads that have some."""
        return self.log_prob(params, raw)

    def choice_preference(self, params: Tensor, raw: Tensor) -> Tensor:
        """How much the choices taken are preferred, differentiable, float32 [..., A]; of heads that have some."""
        return self.choice_log_prob(params, raw)
