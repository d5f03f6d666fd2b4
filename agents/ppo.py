"""Clipped PPO for groups of agents: settings, loss as pure functions, and the module the engine trains.

IPPO and MAPPO are this same code: they differ in `PPO.critic` (Yu et al. 2022, arXiv 2103.01955).
Shapes: B minibatch rows (environment frames), A agents in a group, F features, D action dimensions, S state
features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from agents.actor import Actor, Share
from agents.advantage import Normalization
from agents.critic import Critic, Kind
from agents.derivatives import ClippedSurrogate
from agents.distributions import Policy, Std
from agents.normalize import RewardNormalization, ValueNormalization
from agents.rollout import Rollout
from agents.schedules import Scheduled, Shape
from envs.base import EnvSpec
from marl.errors import UserError

ValueLoss = Literal["l2", "huber"]


@dataclass(frozen=True, kw_only=True)
class PPO:
    """Settings of IPPO and MAPPO; `conf/algo/ppo.yaml` explains each.

    Raises:
        UserError: init_std is not above min_std, or there is no shared network for agent_ids.
    """

    critic: Kind = "concat"
    share_actor: Share = "shared"
    share_critic: Share = "shared"
    policy: Policy = "auto"
    std: Std = "state"
    init_std: Annotated[float, Field(gt=0)] = 1.0
    min_std: Annotated[float, Field(gt=0)] = 0.01
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    rollout_steps: Annotated[int, Field(ge=1)] = 100
    epochs: Annotated[int, Field(ge=1)] = 5
    minibatch_size: Annotated[int, Field(ge=1)] | None = 1000
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_schedule: Shape = "constant"
    clip_final: Annotated[float, Field(gt=0, lt=1)] = 0.05
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    entropy_schedule: Shape = "constant"
    entropy_final: Annotated[float, Field(ge=0)] = 0.0
    critic_coef: Annotated[float, Field(ge=0)] = 1.0
    value_loss: ValueLoss = "l2"
    huber_delta: Annotated[float, Field(gt=0)] = 10.0
    value_clip: Annotated[float, Field(gt=0)] | None = None
    value_norm: ValueNormalization = "none"
    value_norm_beta: Annotated[float, Field(ge=0, lt=1)] = 0.99999
    normalize_observation: bool = False
    observation_limit: Annotated[float, Field(gt=0)] = 10.0
    agent_ids: bool = False
    reward_norm: RewardNormalization = "none"
    reward_limit: Annotated[float, Field(gt=0)] = 10.0
    reward_scale: Annotated[float, Field(gt=0)] = 1.0
    normalize_advantage: Normalization = "none"
    target_kl: Annotated[float, Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        if self.init_std <= self.min_std:
            raise UserError(f"algo.init_std={self.init_std} must be above algo.min_std={self.min_std}.")
        if (
            self.agent_ids
            and self.share_actor == "separate"
            and not (self.share_critic == "shared" and self.critic in ("local", "agent_state"))
        ):
            raise UserError(
                "algo.agent_ids=true: needs a network that agents share, algo.share_actor=shared, or "
                "algo.share_critic=shared with algo.critic=local or agent_state."
            )


def clipped_surrogate(
    log_ratio: Tensor,
    advantage: Tensor,
    clip: float | Tensor,
    dual: float | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's policy loss (Schulman et al. 2017, equation 7, negated) and how far the policy moved.

    With `dual` c an action with a negative advantage counts at most c times that advantage, however likely the new
    policy makes it: max(min(ratio * A, clipped ratio * A), c A) where A < 0 (Ye et al. 2020, equation 5).

    Args:
        log_ratio: log pi(a|s) - log pi_old(a|s), float32 [B, A].
        advantage: float32 [B, A].
        clip: epsilon; the ratio is clipped into [1 - clip, 1 + clip]; a number or a scalar on the device.
        dual: c, above 1; None = no such bound.
        weight: float32 [B, A], sum 1: of each sample in the three means; None = all alike.

    Returns:
        Scalars. The loss: mean of -min(ratio * advantage, clipped ratio * advantage). approx_kl: mean of
        (ratio - 1) - log ratio, unbiased, never negative, of low variance (Schulman 2020, "k3",
        joschu.net/blog/kl-approx.html). clip_fraction: the share of samples whose ratio left [1 - clip, 1 + clip].
        The last two carry no gradient.
    """
    return ClippedSurrogate.apply(log_ratio, advantage, clip, dual, weight)


def of_the_living(alive: Tensor) -> Tensor:
    """Weights of a mean over the samples of agents that are alive: bool [B, A] -> float32 [B, A].

    Death masking (Yu et al. 2022, section 5.5): the dead have no part in policy loss, entropy and the advantages'
    normalisation. Their values are learnt like the others', from an observation of zeros and the agent's id, since the
    living are bootstrapped from them.
    """
    weight = alive.float()
    return weight / weight.sum().clamp(min=1.0)


def value_loss(
    value: Tensor,
    target: Tensor,
    old_value: Tensor | None = None,
    kind: ValueLoss = "l2",
    huber_delta: float = 10.0,
    clip: float | None = None,
) -> Tensor:
    """The critic's loss per sample.

    l2 is the squared error without a factor 1/2, as in TorchRL. huber is e^2/2 within huber_delta and
    delta (|e| - delta/2) beyond, as in the official MAPPO code (at delta 1 it is TorchRL's smooth_l1).
    With `clip` the prediction may move by at most `clip` from the old value; the worse of both losses counts.

    Args:
        value: prediction, float32 [B, A].
        target: returns, float32 [B, A].
        old_value: prediction at collection time, float32 [B, A]; read only with `clip`.
        kind, huber_delta: see above.
        clip: in units of the return; None = not clipped.

    Returns:
        float32 [B, A].
    """

    def distance(prediction: Tensor) -> Tensor:
        if kind == "l2":
            return F.mse_loss(prediction, target, reduction="none")
        return F.huber_loss(prediction, target, reduction="none", delta=huber_delta)

    loss = distance(value)
    if clip is None:
        return loss
    return torch.maximum(loss, distance(old_value + (value - old_value).clamp(-clip, clip)))


class PPOLoss(nn.Module):
    """Policy, value and entropy losses of every group of agents, from one minibatch.

    Attributes:
        actors, critics: the modules it trains, by group.

    The advantage is taken as it comes: normalising it is the rollout's business (`normalize_advantage`).
    Everything is computed on the device, nothing is read back; entropy is computed only where it counts.
    Entropy of a squashed Gaussian draws from the device's default random generator, everything else is
    deterministic.
    """

    def __init__(self, actors: Mapping[str, Actor], critics: Mapping[str, Critic], config: PPO) -> None:
        super().__init__()
        self.actors = nn.ModuleDict(actors)
        self.critics = nn.ModuleDict(critics)
        self.config = config
        self.groups = tuple(self.actors)
        self.uses_state = any(critic.uses_state for critic in self.critics.values())
        self.clip = Scheduled(config.clip, config.clip_schedule, config.clip_final)
        self.entropy_coef = Scheduled(config.entropy_coef, config.entropy_schedule, config.entropy_final)

    def forward(self, batch: Mapping) -> dict[str, Tensor]:
        """The loss of a minibatch.

        Args:
            batch: TensorDict or nested dict {group: {observation float32 [B, A, F], action (raw) [B, A, D],
                log_prob float32 [B, A], advantage float32 [B, A], return float32 [B, A], value float32 [B, A]
                (read only with value_clip), mask bool [B, A, n_features] and alive bool [B, A] (read only where
                the group has such masks)}}, and "state" float32 [B, S] where a critic uses it.

        Returns:
            Scalars on the device, all but "loss" detached: loss (to minimise), policy_loss, value_loss,
            entropy (only with entropy_coef > 0), approx_kl, clip_fraction. With several groups the losses are
            sums and the diagnostics means over the groups, and each group's own follow as "group/policy_loss"
            and so on.
        """
        state = batch["state"] if self.uses_state else None
        parts = {group: self._group(group, batch[group], state) for group in self.groups}
        total = {}
        for key in parts[self.groups[0]]:
            summed = sum(part[key] for part in parts.values())
            total[key] = summed if key.endswith("loss") else summed / len(parts)
        out = {key: x if key == "loss" else x.detach() for key, x in total.items()}
        if len(parts) > 1:
            out |= {f"{g}/{key}": x.detach() for g, part in parts.items() for key, x in part.items()}
        return out

    def advance(self, progress: float) -> dict[str, float]:
        """Set what is scheduled to its value at `progress` of the run, 0 to 1; those values by name."""
        scheduled = {"clip": self.clip, "entropy_coef": self.entropy_coef}
        return {name: each.advance(progress) for name, each in scheduled.items() if each.shape != "constant"}

    def learn_inputs(self, rollout: Rollout) -> None:
        """Take what a rollout saw into the statistics of the networks' inputs; observations of the dead are left out.

        What is seen first by the next rollout is left to that one.
        """
        if not self.config.normalize_observation:
            return
        states = None if rollout.states is None else rollout.states[:-1]
        for name, observed in rollout.observed.items():
            alive = rollout.masks[name].get("alive")
            seen = observed[:-1] if alive is None else observed[:-1][alive[:-1]]
            self.actors[name].inputs.learn(seen)
            self.critics[name].learn_inputs(seen, states)

    def _group(self, group: str, batch: Mapping, state: Tensor | None) -> dict[str, Tensor]:
        cfg, actor = self.config, self.actors[group]
        observation = batch["observation"]
        params = actor(observation, batch["mask"] if "action" in actor.masks else None)
        if self.entropy_coef.matters:
            log_prob, entropy = actor.head.log_prob_and_entropy(params, batch["action"])
        else:
            log_prob, entropy = actor.head.log_prob(params, batch["action"]), None
        weight = of_the_living(batch["alive"]) if "alive" in actor.masks else None
        log_ratio = log_prob - batch["log_prob"]
        policy, approx_kl, clip_fraction = clipped_surrogate(
            log_ratio, batch["advantage"], self.clip.value, cfg.dual_clip, weight
        )
        old_value = batch["value"] if cfg.value_clip is not None else None
        value = self.critics[group](observation, state)
        critic = value_loss(value, batch["return"], old_value, cfg.value_loss, cfg.huber_delta, cfg.value_clip).mean()
        out = {"loss": policy + cfg.critic_coef * critic, "policy_loss": policy, "value_loss": critic}
        if entropy is not None:
            out["entropy"] = entropy.mean() if weight is None else (entropy * weight).sum()
            out["loss"] = out["loss"] - self.entropy_coef.value * out["entropy"]
        return out | {"approx_kl": approx_kl, "clip_fraction": clip_fraction}


def make_loss(
    spec: EnvSpec,
    config: PPO,
    network: Callable[..., nn.Module],
    critic_network: Callable[..., nn.Module] | None = None,
) -> PPOLoss:
    """Actor and critic of every group of an environment, and the loss that trains them.

    Args:
        spec: the environment.
        config: the algorithm's settings.
        network: factory `network(in_shape, out_features) -> nn.Module` of the actors.
        critic_network: the same of the critics; None = `network`.

    Raises:
        UserError: the policy does not fit the actions, or the critic needs a state the environment lacks.
    """
    actors, critics = {}, {}
    inputs = {"normalize": config.normalize_observation, "limit": config.observation_limit, "ids": config.agent_ids}
    for name, group in spec.groups.items():
        actors[name] = Actor(
            group, network, config.share_actor, config.policy, config.std, config.init_std, config.min_std, **inputs
        )
        critics[name] = Critic(
            group,
            critic_network or network,
            config.critic,
            config.share_critic,
            spec.state_size,
            config.value_norm,
            config.value_norm_beta,
            **inputs,
        )
    return PPOLoss(actors, critics, config)
