"""Soft actor-critic for teams: ISAC and MASAC, for continuous and for discrete actions.

Independent and centralised variants differ in `SAC.critic`. Shapes: B minibatch rows, A agents in a group, F features,
D action dimensions, K choices, N critics, S state features.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from agents.algorithms.exploration import mean_over
from agents.algorithms.off_policy.replayed import Replayed, ReplayLoss, ended, without_gradient
from agents.fused_ops import replay_terms
from agents.models.action_values.q_critic import ChoiceCritic, QCritic
from agents.models.actor import Actor
from agents.models.heads import ABSENT, LOG_2, Categorical, TanhNormal
from envs.spec import EnvSpec
from marl.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SAC(Replayed):
    """Settings of ISAC and MASAC; `conf/algo/base/sac.yaml` explains each."""

    twin: bool = True
    temperature: Annotated[float, Field(gt=0)] = 1.0
    learn_temperature: bool = True
    target_entropy: float | None = None
    discrete_target: Annotated[float, Field(gt=0, lt=1)] = 0.2

    @property
    def loss_class(self) -> type["SACLoss"]:
        return SACLoss


class SACLoss(ReplayLoss):
    """Errors of the critics against soft values, the actors' soft values, and the temperatures' distance from a target.

        y = r + gamma (1 - terminated) (min_n Q'_n(s', a') - alpha log pi(a'|s'))

    The density is that of actions in units of half the range, [-1, 1], so that its entropy does not depend on the
    environment's units. Sources: Haarnoja et al. 2018 (SAC, and its sequel for the temperature), Christodoulou 2019
    (discrete actions).
    """

    def __init__(
        self,
        actors: Mapping[str, Actor],
        spec: EnvSpec,
        critic_network: Callable[..., nn.Module],
        config: SAC,
        configs: Mapping[str, SAC],
    ) -> None:
        super().__init__(actors, spec, critic_network, config, configs)
        self.q_critics, self.temperatures, self.target_entropy = nn.ModuleDict(), nn.ParameterDict(), {}
        for name, own in self.configs.items():
            group, head = spec.groups[name], self.actors[name].head
            discrete = isinstance(head, Categorical) and len(group.action.nvec) == 1
            if not discrete and not isinstance(head, TanhNormal):
                raise UserError(
                    f"algo.policy={own.policy}: soft actor-critic needs continuous actions of finite range "
                    f"(tanh_normal) or one discrete choice (categorical), not {group.action.kind} ones here"
                )
            critic = ChoiceCritic if discrete else QCritic
            self.q_critics[name] = critic(group, critic_network, own, spec.state_size, 2 if own.twin else 1)
            initial = torch.tensor(math.log(own.temperature))
            self.temperatures[name] = nn.Parameter(initial, requires_grad=own.learn_temperature)
            default = own.discrete_target * math.log(group.action.nvec[0]) if discrete else -float(group.action.size)
            self.target_entropy[name] = default if own.target_entropy is None else own.target_entropy
        self.uses_state = any(critic.uses_state for critic in self.q_critics.values())
        self.target_critics = nn.ModuleDict({name: self.target(critic) for name, critic in self.q_critics.items()})

    def parts(self) -> dict[str, nn.Module]:
        """The actors, the critics and, where they are learnt, the temperatures of all groups."""
        learnt = any(parameter.requires_grad for parameter in self.temperatures.values())
        return {
            "actor": self.actors,
            "critic": self.q_critics,
            **({"temperature": self.temperatures} if learnt else {}),
        }

    def capture_key(self) -> tuple:
        """What decides `forward` beside tensors and their shapes (`marl.capture.captured_loss`)."""
        return (self.training,)

    def forward(self, batch: Mapping) -> dict[str, Tensor]:
        """The loss of a minibatch, as `agents.collection.replay_buffer.ReplayBuffer.sample` gives it.

        Returns:
            Scalars on the device, all but "loss" detached: loss, critic_loss, actor_loss, q, entropy, temperature, and
            temperature_loss where temperatures are learnt.
        """
        return self.summed({group: self._group(group, batch) for group in self.groups})

    def _group(self, name: str, batch: Mapping) -> dict[str, Tensor]:
        rows, own, actor, critic = batch[name], self.configs[name], self.actors[name], self.q_critics[name]
        states = (batch["state"], batch["next_state"]) if critic.uses_state else (None, None)
        alive = rows["alive"] if "alive" in actor.masks else None
        log_temperature = self.temperatures[name]
        terms = self._choices if isinstance(critic, ChoiceCritic) else self._continuous
        q, following, penalty, actor_value, entropy = terms(name, rows, states, log_temperature.detach().exp())
        of_step = rows["reward"], ended(batch, name), batch["discount"], alive
        critic_loss, mean_q = self.errors(q, following, *of_step, own.reward_scale, penalty)
        out = {"critic_loss": critic_loss, "actor_loss": -mean_over(actor_value, alive), "q": mean_q}
        out["loss"] = critic_loss + out["actor_loss"]
        out |= {"entropy": mean_over(entropy, alive), "temperature": log_temperature.exp()}
        if own.learn_temperature:
            excess = mean_over(entropy.detach() - self.target_entropy[name], alive)
            out["temperature_loss"] = log_temperature * excess
            out["loss"] = out["loss"] + out["temperature_loss"]
        return out

    def _continuous(
        self, name: str, rows: Mapping, states: tuple[Tensor | None, Tensor | None], temperature: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """Values of the actions taken and of what follows [N, B, A], what a soft value takes from these [B, A].

        Then the actors' soft values and their entropy [B, A].
        """
        actor, critic = self.actors[name], self.q_critics[name]
        with torch.no_grad():
            action, log_prob = _draw(actor, rows["next_observation"])
            following = self.target_critics[name](rows["next_observation"], action, states[1])
            penalty = temperature * log_prob
        q = critic(rows["observation"], rows["action"].tanh(), states[0])
        action, log_prob = _draw(actor, rows["observation"])
        with without_gradient(critic):
            value = critic(rows["observation"], action, states[0]).amin(0)
        return q, following, penalty, value - temperature * log_prob, -log_prob

    def _choices(
        self, name: str, rows: Mapping, states: tuple[Tensor | None, Tensor | None], temperature: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """The same by sums over the choices, which need no sample."""
        actor, critic = self.actors[name], self.q_critics[name]
        masked = "action" in actor.masks
        with torch.no_grad():
            p, log_p = _probabilities(actor, rows["next_observation"], rows["next_mask"] if masked else None)
            following = self.target_critics[name](rows["next_observation"], states[1]).amin(0)
            soft_next = (p * (following - temperature * log_p)).sum(-1)
        values = critic(rows["observation"], states[0])
        q = values.gather(-1, rows["action"].expand(len(values), *rows["action"].shape)).squeeze(-1)
        p, log_p = _probabilities(actor, rows["observation"], rows["mask"] if masked else None)
        entropy = -(p * log_p).sum(-1)
        return q, soft_next.unsqueeze(0), None, (p * values.detach().amin(0)).sum(-1) + temperature * entropy, entropy


def _draw(actor: Actor, observation: Tensor) -> tuple[Tensor, Tensor]:
    """A reparameterised action in [-1, 1], [B, A, D], and its log-density in that unit, [B, A]."""
    head, params = actor.head, actor(observation).float()
    noise = torch.randn_like(params[..., : head.raw_size])
    if head.log_std is None:
        drawn = replay_terms.squashed(params, noise, head.std_bias, head.min_std, head.mask)
        if drawn is not None:
            return drawn
    loc, std = head.loc_std(params)
    raw = loc + std * noise
    log_prob = -0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)
    log_prob = log_prob - 2.0 * (LOG_2 - raw - F.softplus(-2.0 * raw))
    if head.mask is not None:
        log_prob = log_prob * head.mask
    return raw.tanh(), log_prob.sum(-1)


def _probabilities(actor: Actor, observation: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Probabilities and their logarithms [B, A, K]; a forbidden choice has 0 and a finite logarithm."""
    log_p = actor(observation, mask).float().log_softmax(-1)
    return log_p.exp(), log_p.clamp(min=ABSENT)
