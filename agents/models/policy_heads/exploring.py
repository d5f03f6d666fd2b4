"""Heads of policies that explore by noise of their own: greedy choices by value, and deterministic actions.

Shapes: A agents in a group (second-last dimension), D action dimensions, N noise size, `...` any leading dimensions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.models.policy_heads.base import ABSENT, Head
from envs.spec import ActionSpec
from marl.core.errors import UserError


class Exploring(Head):
    """A head whose noise is scaled by `exploration`: a number on the device, which a loss moves over a run.

    The actions have no density, so `log_prob`, `log_jacobian` and `entropy` are zeros.
    """

    exploration: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("exploration", torch.zeros(()), persistent=False)

    def log_prob(self, params: Tensor, raw: Tensor) -> Tensor:
        return torch.zeros_like(params[..., 0], dtype=torch.float32)

    def log_jacobian(self, raw: Tensor) -> Tensor:
        return torch.zeros_like(raw[..., 0], dtype=torch.float32)

    def entropy(self, params: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.zeros_like(params[..., 0], dtype=torch.float32)


class EpsilonGreedy(Exploring):
    """The choice of the highest value; with probability `exploration` (epsilon) a uniform one of those allowed.

    The network's outputs are the values of the n choices. Where a choice is masked its value is `ABSENT`.
    """

    choice_meaning = "value"

    def __init__(self, spec: ActionSpec) -> None:
        super().__init__()
        (self.choices,) = spec.nvec
        self.n_features, self.noise_size = self.choices, self.choices + 1
        self.raw_size, self.raw_dtype = 1, torch.int64
        self._set_mask(spec)

    def noise(
        self, shape: Sequence[int], device: torch.device | str, generator: torch.Generator | None = None
    ) -> Tensor:
        """Uniform numbers: a rank of every choice, and one that decides whether to explore."""
        return torch.rand((*shape, self.noise_size), device=device, generator=generator)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        ranks = noise[..., :-1].masked_fill(params <= ABSENT, -1.0)
        explores = noise[..., -1] < self.exploration
        return torch.where(explores, ranks.argmax(-1), params.argmax(-1)).unsqueeze(-1)

    def mode(self, params: Tensor) -> Tensor:
        return params.argmax(-1, keepdim=True)

    def choice_preference(self, params: Tensor, raw: Tensor) -> Tensor:
        return params.float().gather(-1, raw).squeeze(-1)

    def imitation_error(self, params: Tensor, raw: Tensor) -> Tensor:
        """Cross-entropy, with the values as logits: afterwards the teacher's choice has the highest one."""
        return -params.float().log_softmax(-1).gather(-1, raw).squeeze(-1)

    def to_env(self, raw: Tensor) -> Tensor:
        return raw


class Deterministic(Exploring):
    """One action per observation, tanh(params) in units of half the range; explored by Gaussian noise on it.

    The raw action lies in [-1, 1]. `exploration` is the noise's standard deviation in the same unit.
    Source: Lillicrap et al. 2016 (DDPG), with the Gaussian noise of Fujimoto et al. 2018 (TD3).
    """

    def __init__(self, spec: ActionSpec) -> None:
        super().__init__()
        self.raw_size, self.raw_dtype, self.noise_size = spec.size, torch.float32, spec.size
        self.n_features = spec.size
        self._set_mask(spec)
        self.register_buffer("half_range", ((spec.high - spec.low) / 2).float(), persistent=False)
        self.register_buffer("centre", ((spec.high + spec.low) / 2).float(), persistent=False)

    def noise(
        self, shape: Sequence[int], device: torch.device | str, generator: torch.Generator | None = None
    ) -> Tensor:
        return torch.randn((*shape, self.noise_size), device=device, generator=generator)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        return (params.float().tanh() + self.exploration * noise).clamp(-1.0, 1.0)

    def mode(self, params: Tensor) -> Tensor:
        return params.float().tanh()

    def to_env(self, raw: Tensor) -> Tensor:
        return torch.addcmul(self.centre, self.half_range, raw)

    def imitation_error(self, params: Tensor, raw: Tensor) -> Tensor:
        """Squared error, summed over the dimensions, in units of half the range."""
        return self._sum((params.float().tanh() - raw).square())


EXPLORING = ("epsilon_greedy", "deterministic")
ANY = ("mappo", "ippo")  # take actions of all kinds
REPLAYED = ("masac", "isac", "maddpg", "iddpg", "matd3")  # continuous ones of finite range
CHOOSING = ("qmix", "vdn", "iql", "pqn", "pqn_vdn", "masac", "isac")  # one choice per agent


def make_exploring(spec: ActionSpec, kind: str) -> Exploring:
    """The head of this kind of `EXPLORING`. Raises UserError where it does not fit the actions."""
    if kind == "epsilon_greedy":
        if spec.kind != "discrete":
            raise UserError(
                f"algo.policy=epsilon_greedy: values choices, and these actions are {spec.kind}; VMAS has discrete "
                f"ones with env.continuous_actions=false env.multi_discrete=false; {fitting(spec)}"
            )
        return EpsilonGreedy(spec)
    if not bounded(spec):
        needs = "needs continuous actions of finite range"
        raise UserError(f"algo.policy=deterministic: {needs}, not {spec.kind} ones; {fitting(spec)}")
    return Deterministic(spec)


def fitting(spec: ActionSpec) -> str:
    """Which algorithms learn with a group's actions, in words: those with a replay buffer first."""
    of_simulator = ""
    if spec.kind == "continuous":
        names, of_simulator = (*(REPLAYED if bounded(spec) else ()), *ANY), "; of VMAS's scenarios also shac and apg"
    else:
        names = (*(CHOOSING if spec.kind == "discrete" else ()), *ANY)
    return f"{spec.kind} ones are for algo={', '.join(names)}{of_simulator}"


def bounded(spec: ActionSpec) -> bool:
    """Whether actions are continuous and all their ranges finite; a padded dimension is never used."""
    used = slice(None) if spec.mask is None else spec.mask
    return spec.kind == "continuous" and bool((spec.high - spec.low)[used].isfinite().all())
