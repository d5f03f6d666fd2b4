"""Soft actor-critic for teams: ISAC and MASAC, for continuous and for discrete actions.

Independent and centralised variants differ in `SAC.critic`. Shapes: B minibatch rows, A agents in a group, F features,
D action dimensions, K choices, N critics, S state features.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

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
from agents.models.replayed_sequences import Unrolled, UnrolledCritic
from envs.spec import EnvSpec
from marl.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SAC(Replayed):
    """Settings of ISAC and MASAC; `conf/algo/base/sac.yaml` explains each."""

    recurrent: ClassVar[bool] = True

    twin: bool = True
    temperature: Annotated[float, Field(gt=0)] = 1.0
    learn_temperature: bool = True
    target_entropy: float | None = None
    discrete_target: Annotated[float, Field(gt=0, lt=1)] = 0.2

    @property
    def n_critics(self) -> int:
        """N, critics of every group."""
        return 2 if self.twin else 1

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

    _own_choices = False  # in_targets, for_actors and errors are those of this class

    def build(self, spec: EnvSpec, critic_network: Callable[..., nn.Module]) -> None:
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
            self.q_critics[name] = critic(group, critic_network, own, spec.state_size, own.n_critics)
            initial = torch.tensor(math.log(own.temperature))
            self.temperatures[name] = nn.Parameter(initial, requires_grad=own.learn_temperature)
            default = own.discrete_target * math.log(group.action.nvec[0]) if discrete else -float(group.action.size)
            self.target_entropy[name] = default if own.target_entropy is None else own.target_entropy
        choices = "in_targets", "for_actors", "errors", "error"
        self._own_choices = all(getattr(type(self), choice) is getattr(SACLoss, choice) for choice in choices)
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

    @staticmethod
    def unit(action: Tensor) -> Tensor:
        """Raw actions are before the tanh."""
        return action.tanh()

    def capture_key(self) -> tuple:
        """What decides `forward` beside tensors and their shapes (`marl.capture.captured_loss`)."""
        return (self.training,)

    def forward(self, batch: Mapping) -> dict[str, Tensor]:
        """The loss of a minibatch, as `agents.collection.replay.buffer.ReplayBuffer.sample` gives it.

        Returns:
            Scalars on the device, all but "loss" detached: loss, critic_loss, actor_loss, q, entropy, temperature, and
            temperature_loss where temperatures are learnt. Of a prioritised draw also td_error [B]; its weights count
            for the critics.
        """
        return self.summed({group: self._group(group, batch) for group in self.groups})

    def _group(self, name: str, batch: Mapping) -> dict[str, Tensor]:
        rows, own, actor, critic = batch[name], self.configs[name], self.actors[name], self.q_critics[name]
        states = (batch["state"], batch["next_state"]) if critic.uses_state else (None, None)
        alive = rows["alive"] if "alive" in actor.masks else None
        log_temperature = self.temperatures[name]
        if isinstance(critic, ChoiceCritic):
            temperature = log_temperature.detach().exp()
            q, following, penalty, actor_value, entropy = self._choices(name, rows, states, temperature)
        else:
            q, future, next_log_prob, values, log_prob = self._continuous(name, rows, states)
            if self._plain(batch, alive):
                of_step = rows["reward"], own.reward_scale, ended(batch, name), batch["discount"]
                wanted = self.target_entropy[name], own.learn_temperature
                seen = q, future, next_log_prob, values, log_prob
                terms = replay_terms.soft(*seen, log_temperature, *of_step, *wanted)
                if terms is not None:
                    return _named(*terms, own.learn_temperature)
            temperature = log_temperature.detach().exp()
            following, penalty = self.in_targets(future, own), temperature * next_log_prob
            actor_value, entropy = self.for_actors(values, own) - temperature * log_prob, -log_prob
        of_step = rows["reward"], ended(batch, name), batch, alive
        errors = self.errors(q, following.unsqueeze(0), *of_step, own.reward_scale, penalty)
        critic_loss = errors.pop("td_loss")
        out = {"critic_loss": critic_loss, "actor_loss": -mean_over(actor_value, alive), **errors}
        out["loss"] = critic_loss + out["actor_loss"]
        out |= {"entropy": mean_over(entropy, alive), "temperature": log_temperature.exp()}
        if own.learn_temperature:
            excess = mean_over(entropy.detach() - self.target_entropy[name], alive)
            out["temperature_loss"] = log_temperature * excess
            out["loss"] = out["loss"] + out["temperature_loss"]
        return out

    def in_targets(self, values: Tensor, own: SAC) -> Tensor:
        """What targets take of the target critics' values: float32 [N, ...] -> [...]; here the smallest.

        own: the group's settings.
        """
        return values.amin(0)

    def for_actors(self, values: Tensor, own: SAC) -> Tensor:
        """What the actors are to increase of the critics' values: float32 [N, ...] -> [...]; here the smallest.

        own: the group's settings.
        """
        return values.amin(0)

    def _plain(self, batch: Mapping, alive: Tensor | None) -> bool:
        """Whether the loss is that of the papers: no other choice of a subclass, errors or weights."""
        weighted = "weight" in batch.keys()  # noqa: SIM118
        return self._own_choices and alive is None and not weighted and self.config.error == "l2"

    def _continuous(
        self, name: str, rows: Mapping, states: tuple[Tensor | None, Tensor | None]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Values of the actions taken [N, B, A]; target values of those that follow, and their log-density [B, A].

        Then values of the actors' actions [N, B, A], and their log-density.
        """
        actor, critic = self.actors[name], self.q_critics[name]
        seen = rows, states, self.config.burn_in, self.unit
        policy = Unrolled(actor, rows, self.config.burn_in)
        with torch.no_grad():
            action, next_log_prob = _draw(actor, policy.after(None))
            future = UnrolledCritic(self.target_critics[name].network, *seen).after(action)
        values = UnrolledCritic(critic, *seen)
        q = values.now()
        action, log_prob = _draw(actor, policy.now(None))
        with without_gradient(critic):
            return q, future, next_log_prob, values.of(action), log_prob

    def _choices(
        self, name: str, rows: Mapping, states: tuple[Tensor | None, Tensor | None], temperature: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
        """Values of the choices made [N, B, A], soft values of what follows [B, A], what these lack: nothing.

        Then the actors' soft values and their entropy [B, A]. All are sums over the choices, which need no sample.
        """
        own, actor, seen = self.configs[name], self.actors[name], (rows, states, self.config.burn_in)
        mask, next_mask = (rows["mask"], rows["next_mask"]) if "action" in actor.masks else (None, None)
        policy = Unrolled(actor, rows, self.config.burn_in)
        with torch.no_grad():
            p, log_p = _probabilities(policy.after(next_mask))
            target = UnrolledCritic(self.target_critics[name].network, *seen)
            following = self.in_targets(target.after(), own)
            soft_next = (p * (following - temperature * log_p)).sum(-1)
        values = UnrolledCritic(self.q_critics[name], *seen).now()
        q = values.gather(-1, rows["action"].expand(len(values), *rows["action"].shape)).squeeze(-1)
        p, log_p = _probabilities(policy.now(mask))
        entropy = -(p * log_p).sum(-1)
        value = (p * self.for_actors(values.detach(), own)).sum(-1) + temperature * entropy
        return q, soft_next, None, value, entropy


def _named(loss: Tensor, figures: Tensor, learns: bool) -> dict[str, Tensor]:
    """What `replay_terms.soft` gives, by name."""
    names = "critic_loss", "actor_loss", "temperature_loss", "q", "entropy", "temperature"
    out = {"loss": loss, **dict(zip(names, figures.unbind(), strict=True))}
    return out if learns else {name: value for name, value in out.items() if name != "temperature_loss"}


def _draw(actor: Actor, params: Tensor) -> tuple[Tensor, Tensor]:
    """A reparameterised action in [-1, 1], [B, A, D], and its log-density in that unit, [B, A]."""
    head, params = actor.head, params.float()
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


def _probabilities(params: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and their logarithms [B, A, K]; a forbidden choice has 0 and a finite logarithm."""
    log_p = params.float().log_softmax(-1)
    return log_p.exp(), log_p.clamp(min=ABSENT)
