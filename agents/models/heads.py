"""Policy heads: action distributions as small modules, without validation or host synchronisation.

A head turns a network's outputs (`params`) into actions. An action has two forms:

- *raw*, what the rollout stores and the loss reads: the pre-tanh sample of a squashed Gaussian, the unclipped
  sample of a clipped Gaussian, the index of a categorical; a hybrid action has one after the other;
- *environment units*, what `Env.step` takes: `to_env(raw)`.

`log_prob` is always the density of the raw action. The change of variables to environment units depends on the
action alone. It cancels in every ratio and divergence of two policies at the same action, so PPO never needs it.
`log_jacobian(raw)` is that change, and `log_prob - log_jacobian` the density in environment units.

Shapes: A agents in a group (second-last dimension), D action dimensions, N noise size, `...` any leading dimensions.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.fused_ops.autograd import LOG_SQRT_2PI, CategoricalTerms, NormalLogProb
from agents.models.policy_heads.base import ABSENT, Head
from agents.models.policy_heads.exploring import EXPLORING, make_exploring
from agents.models.policy_heads.hybrid import Hybrid
from envs.spec import ActionSpec
from marl.core.errors import UserError

LOG_2 = math.log(2.0)

Policy = Literal["auto", "tanh_normal", "clipped_normal", "categorical", "epsilon_greedy", "deterministic"]
Std = Literal["state", "independent"]


class _Normal(Head):
    """Independent Gaussians: what the squashed and the clipped head share."""

    def __init__(self, spec: ActionSpec, std: Std, init_std: float, min_std: float, shared: bool) -> None:
        super().__init__()
        self.raw_size, self.raw_dtype, self.noise_size = spec.size, torch.float32, spec.size
        self.n_features = spec.size * (2 if std == "state" else 1)
        self.min_std = min_std
        # softplus(0 + bias) + min_std = init_std; TorchRL calls it "biased_softplus_1.0" at 1.0 and 0.01.
        self.std_bias = math.log(math.expm1(init_std - min_std))
        self.log_std = None
        if std == "independent":
            rows = 1 if shared else spec.low.shape[0]
            self.log_std = nn.Parameter(torch.full((rows, spec.size), math.log(init_std - min_std)))
        self._set_mask(spec)
        self.register_buffer("low", spec.low.float(), persistent=False)
        self.register_buffer("high", spec.high.float(), persistent=False)

    def loc_std(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [..., A, D] and standard deviation ([..., A, D], or broadcastable to it), float32."""
        params = params.float()  # densities in full precision, whatever the network ran in
        if self.log_std is not None:
            return params, self.log_std.exp() + self.min_std
        loc, x = params.chunk(2, -1)
        return loc, F.softplus(x + self.std_bias) + self.min_std

    def noise(
        self, shape: Sequence[int], device: torch.device | str, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.randn((*shape, self.noise_size), device=device, generator=generator)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        loc, std = self.loc_std(params)
        return torch.addcmul(loc, std, noise)

    def mode(self, params: Tensor) -> Tensor:
        return self.loc_std(params)[0]

    def log_prob(self, params: Tensor, raw: Tensor) -> Tensor:
        if self.log_std is None and params.requires_grad and torch.is_grad_enabled():
            return NormalLogProb.apply(params.float(), raw, self.std_bias, self.min_std, self.mask)
        loc, std = self.loc_std(params)
        return self._sum(-0.5 * ((raw - loc) / std).square() - std.log() - LOG_SQRT_2PI)

    def _normal_entropy(self, params: Tensor) -> Tensor:
        loc, std = self.loc_std(params)
        return self._sum((std.log() + (0.5 + LOG_SQRT_2PI)).expand_as(loc))


class TanhNormal(_Normal):
    """Squashed Gaussian: u ~ N(loc, std), action = low + (high - low) (tanh u + 1) / 2; the raw action is u.

    Since u itself is stored there is no atanh, and no clamping error where tanh saturates.
    Source: Haarnoja et al. 2018 (SAC), appendix C; the stable Jacobian is that of torch's TanhTransform.
    """

    def __init__(self, spec: ActionSpec, std: Std, init_std: float, min_std: float, shared: bool) -> None:
        super().__init__(spec, std, init_std, min_std, shared)
        half = (self.high - self.low) / 2
        self.register_buffer("half_range", half, persistent=False)
        self.register_buffer("centre", (self.high + self.low) / 2, persistent=False)
        # Padded dimensions may have an empty range, whose logarithm the mask could not undo.
        self.register_buffer("log_half", torch.where(half > 0, half, 1.0).log(), persistent=False)

    def log_jacobian(self, raw: Tensor) -> Tensor:
        # log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u)), exact for large |u| too.
        return self._sum(self.log_half + 2.0 * (LOG_2 - raw - F.softplus(-2.0 * raw)))

    def entropy(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Unbiased estimate of the entropy in the environment's units, which has no closed form.

        H(action) = H(u) + E[log_jacobian(u)]: the first term exact, the second from one reparameterised
        sample, so that its variance is below that of -log_prob at one sample.
        """
        noise = self.noise(params.shape[:-1], params.device, generator)
        return self._normal_entropy(params) + self.log_jacobian(self.draw(params, noise))

    def to_env(self, raw: Tensor) -> Tensor:
        return torch.addcmul(self.centre, self.half_range, raw.tanh())


class ClippedNormal(_Normal):
    """Unbounded Gaussian whose sample is clipped into [low, high] on its way to the environment.

    Density and entropy are those of the unclipped sample, as in Stable-Baselines3 and CleanRL.
    """

    def log_jacobian(self, raw: Tensor) -> Tensor:
        return torch.zeros_like(raw[..., 0])

    def entropy(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self._normal_entropy(params)

    def to_env(self, raw: Tensor) -> Tensor:
        return raw.clamp(self.low, self.high)


class Categorical(Head):
    """Independent categoricals, one per action dimension: discrete (one) and multi-discrete actions.

    The network's outputs are the logits of the dimensions one after the other, sum(nvec) in all; the joint
    log-probability and the joint entropy are the sums over the dimensions.
    """

    def __init__(self, spec: ActionSpec) -> None:
        super().__init__()
        self.nvec = tuple(int(n) for n in spec.nvec)
        self.choices = max(self.nvec)
        self.n_features = sum(self.nvec)
        self.raw_size, self.raw_dtype = len(self.nvec), torch.int64
        self.noise_size = self.raw_size * self.choices
        self._set_mask(spec)

    def _logits(self, params: Tensor) -> Tensor:
        """[..., A, sum(nvec)] -> [..., A, D, choices], absent choices filled with ABSENT."""
        params = params.float()
        if self.n_features == self.noise_size:
            return params.unflatten(-1, (self.raw_size, self.choices))
        parts = params.split(self.nvec, -1)
        return torch.stack([F.pad(p, (0, self.choices - p.shape[-1]), value=ABSENT) for p in parts], -2)

    def noise(
        self, shape: Sequence[int], device: torch.device | str, generator: torch.Generator | None = None
    ) -> Tensor:
        # Standard Gumbel noise, -log(-log u): five times as fast on a CPU as torch's exponential_. Uniform numbers are
        # multiples of 2^-24; where one is 0 the noise is that of half a step.
        u = torch.rand((*shape, self.noise_size), device=device, generator=generator)
        return u.clamp_min_(2.0**-25).log_().neg_().log_().neg_()

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        # Gumbel-max: argmax(logit + Gumbel) is a draw from softmax(logit); no multinomial, no host sync.
        if self.raw_size == 1:  # nothing to take apart
            return (params.float() + noise).argmax(-1, keepdim=True)
        return (self._logits(params) + noise.unflatten(-1, (self.raw_size, self.choices))).argmax(-1)

    def mode(self, params: Tensor) -> Tensor:
        return self._logits(params).argmax(-1)

    def log_prob_and_entropy(self, params: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_prob, entropy = CategoricalTerms.apply(self._logits(params), raw.unsqueeze(-1))
        if self.raw_size == 1 and self.mask is None:
            return log_prob.squeeze(-1), entropy.squeeze(-1)
        return self._sum(log_prob), self._sum(entropy)

    def log_prob(self, params: Tensor, raw: Tensor) -> Tensor:
        return self.log_prob_and_entropy(params, raw)[0]

    def log_jacobian(self, raw: Tensor) -> Tensor:
        return torch.zeros_like(raw[..., 0], dtype=torch.float32)

    def entropy(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        log_p = self._logits(params).log_softmax(-1)
        return self._sum(-(log_p.exp() * log_p).sum(-1))

    def to_env(self, raw: Tensor) -> Tensor:
        return raw


def make_head(
    spec: ActionSpec,
    kind: Policy = "auto",
    std: Std = "state",
    init_std: float = 1.0,
    min_std: float = 0.01,
    shared: bool = True,
) -> Head:
    """The policy head for a group's actions.

    Args:
        spec: the group's actions; low/high float32 [A, D].
        kind: auto = tanh_normal for continuous actions (clipped_normal where a bound is infinite), categorical for
            discrete and multi-discrete ones; hybrid actions have a Gaussian, named by `kind`, beside a categorical.
            epsilon_greedy and deterministic are of algorithms with a replay buffer.
        std: Gaussians only. state = the network outputs it, through a biased softplus; independent = a
            parameter of its own per action dimension.
        init_std: standard deviation at network output 0, in raw units (before tanh or clipping).
        min_std: floor of the standard deviation; below init_std.
        shared: one independent standard deviation for all agents [1, D], else one per agent [A, D].

    Raises:
        UserError: the head does not fit the actions.
    """
    if kind in EXPLORING:
        return make_exploring(spec, kind)
    if spec.kind == "hybrid" and kind != "categorical":
        C = spec.n_continuous
        masks = (None, None) if spec.mask is None else spec.mask.split([C, len(spec.nvec)], -1)
        gaussian = ActionSpec("continuous", spec.low, spec.high, (), masks[0])
        choices = ActionSpec("multi_discrete", None, None, spec.nvec, masks[1])
        return Hybrid(make_head(gaussian, kind, std, init_std, min_std, shared), make_head(choices))
    continuous = spec.low is not None
    # A padded dimension is never used, so that its bounds don't matter.
    used = slice(None) if spec.mask is None else spec.mask
    bounded = continuous and bool((spec.high - spec.low)[used].isfinite().all())
    if kind == "auto":
        kind = ("tanh_normal" if bounded else "clipped_normal") if continuous else "categorical"
    if continuous == (kind == "categorical"):
        allowed = "auto, tanh_normal, clipped_normal" if continuous else "auto, categorical"
        raise UserError(f"algo.policy={kind} does not fit {spec.kind} actions; use one of {allowed} here.")
    if kind == "categorical":
        return Categorical(spec)
    if kind == "tanh_normal" and not bounded:
        raise UserError("algo.policy=tanh_normal needs finite action bounds; use clipped_normal here.")
    return (TanhNormal if kind == "tanh_normal" else ClippedNormal)(spec, std, init_std, min_std, shared)
