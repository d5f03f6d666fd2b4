"""What algorithms that learn from what the current policy collects have in common: settings of the task's loop."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from agents.algorithms.advantages import Normalization
from agents.algorithms.base import Algorithm
from agents.models.normalization import RewardNormalization
from marl.core.errors import UserError

Update = Literal["joint", "sequential"]


@dataclass(frozen=True, kw_only=True)
class OnPolicyAlgorithm(Algorithm):
    """Settings that `agents.tasks.on_policy.OnPolicy` reads; `conf/algo` explains each.

    Class attributes with the values of an algorithm that has no such setting: update, normalize_advantage, value_clip,
    target_kl, of_the_team (whether rewards and values are a team's).

    Raises:
        UserError: as `Algorithm`, or chunks that don't fit the rollout.
    """

    per_iteration: ClassVar[tuple[str, ...]] = ("epochs", "minibatch_size")
    divided: ClassVar[tuple[str, ...]] = ("minibatch_size",)
    common: ClassVar[tuple[str, ...]] = (*Algorithm.common, "rollout_steps", "epochs", "minibatch_size")

    update: ClassVar[Update] = "joint"
    normalize_advantage: ClassVar[Normalization] = "none"
    value_clip: ClassVar[float | None] = None
    target_kl: ClassVar[float | None] = None
    of_the_team: ClassVar[bool] = False

    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    rollout_steps: Annotated[int, Field(ge=1)] = 100
    epochs: Annotated[int, Field(ge=1)] = 5
    minibatch_size: Annotated[int, Field(ge=1)] | None = 1000
    chunk_length: Annotated[int, Field(ge=1)] | None = None
    burn_in: Annotated[int, Field(ge=0)] = 0
    reward_norm: RewardNormalization = "none"
    reward_limit: Annotated[float, Field(gt=0)] = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        length = self.chunk_length or self.rollout_steps
        if self.rollout_steps % length:
            raise UserError(
                f"algo.chunk_length={length}: must divide algo.rollout_steps={self.rollout_steps} without a remainder"
            )
        if self.burn_in and not self.burn_in <= length < self.rollout_steps:
            raise UserError(
                f"algo.burn_in={self.burn_in}: at most algo.chunk_length, which must be below algo.rollout_steps="
                f"{self.rollout_steps}, since a rollout's first chunk has no steps before it"
            )

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """As `Algorithm`; also what the task's part of a checkpoint depends on, and what frames are counted in."""
        return key in ("reward_norm", "update", "rollout_steps") or super().keeps_on_resume(key)
