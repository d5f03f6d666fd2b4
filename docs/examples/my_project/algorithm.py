"""An algorithm of one's own: Simple Policy Optimization (Xie et al. 2024, arXiv 2401.16025) instead of clipping."""

from dataclasses import dataclass

from agents.algorithms.ppo import PPO, PPOLoss


@dataclass(frozen=True, kw_only=True)
class SPO(PPO):
    """PPO's settings; `clip` is what the ratio is drawn to, 1 + clip or 1 - clip, instead of being cut there."""

    @property
    def loss_class(self):
        return SPOLoss


class SPOLoss(PPOLoss):
    """PPO's loss with another policy term; actors, critics, entropy and everything else stay."""

    def surrogate(self, log_ratio, advantage, weight, clip, dual=None):
        _, approx_kl, clip_fraction = super().surrogate(log_ratio, advantage, weight, clip, dual)  # the diagnostics
        ratio = log_ratio.exp()
        gain = ratio * advantage - advantage.abs() / (2 * clip) * (ratio - 1).square()  # equation 12
        loss = -(gain.mean() if weight is None else (gain * weight).sum())
        return loss, approx_kl, clip_fraction
