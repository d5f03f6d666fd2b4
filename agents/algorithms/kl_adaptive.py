"""A learning rate that keeps the policy's step size, measured by its KL divergence."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from agents.algorithms.ppo import PPOLoss
from marl.callbacks.base import Callback, monitored
from marl.core.errors import UserError
from marl.engine.run_view import RunView


@dataclass
class KLAdaptive(Callback):
    """A learning rate that holds approx_kl near `target`, as rsl_rl and skrl's KLAdaptiveLR do.

        lr / factor  where approx_kl > target * tolerance        lr * factor  where approx_kl < target / tolerance

    within [lowest, highest]; every part's rate by the same factor. approx_kl is the mean over an iteration's
    minibatches, which the engine has on the host anyway. So the rate changes once per iteration, and nothing waits for
    the device (rsl_rl: per minibatch, skrl: per epoch). The rates are the optimiser's own and are saved with it.

    Raises:
        UserError: at the start, where a learning-rate schedule or several processes would interfere.
    """

    target: Annotated[float, Field(gt=0)] = 0.01
    factor: Annotated[float, Field(gt=1)] = 1.5
    tolerance: Annotated[float, Field(gt=1)] = 2.0
    lowest: Annotated[float, Field(gt=0)] = 1e-5
    highest: Annotated[float, Field(gt=0)] = 1e-2

    def on_start(self, trainer: RunView) -> None:
        """Refuse what would change the rate too, or change it in one process only, and a task without a policy."""
        if not isinstance(trainer.task.loss, PPOLoss):
            raise UserError("callbacks.kl_adaptive: follows a policy's approx_kl, and this task trains none by PPO")
        if trainer.schedule.scheduler is not None:
            raise UserError("callbacks.kl_adaptive: sets the learning rate itself; use scheduler=constant with it")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise UserError("callbacks.kl_adaptive: works in a run of one process; use a schedule with several")
        if self.lowest > self.highest:
            raise UserError(f"callbacks.kl_adaptive.lowest={self.lowest}: must be at most highest={self.highest}")

    def on_iteration(self, trainer: RunView, record: dict) -> None:
        """Set the next iteration's learning rates by this one's approx_kl."""
        kl = monitored(record, "approx_kl", "callbacks.kl_adaptive")
        if kl > self.target * self.tolerance:
            change = 1 / self.factor
        elif kl < self.target / self.tolerance:
            change = self.factor
        else:
            return
        for group in trainer.optimizer.param_groups:
            rate = min(max(float(group["lr"]) * change, self.lowest), self.highest)
            if isinstance(group["lr"], Tensor):  # a captured step reads it where it lies
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
