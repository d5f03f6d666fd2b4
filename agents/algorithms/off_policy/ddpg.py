"""Deterministic policy gradients for teams: IDDPG and MADDPG, and with TD3's three changes MATD3.

Independent and centralised variants differ in `DDPG.critic`. Shapes: B minibatch rows, A agents in a group, F features,
D action dimensions, N critics, S state features.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from agents.algorithms.exploration import mean_over
from agents.algorithms.off_policy.replayed import Replayed, ReplayLoss, ended, without_gradient
from agents.models.action_values.q_critic import QCritic
from agents.models.heads import Policy
from agents.models.replayed_sequences import Unrolled, UnrolledCritic
from envs.spec import EnvSpec
from marl.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DDPG(Replayed):
    """Settings of IDDPG, MADDPG and MATD3; `conf/algo/base/ddpg.yaml` explains each.

    Raises:
        UserError: as `Algorithm`, or another policy than the deterministic one.
    """

    common = (*Replayed.common, "policy_every")
    recurrent: ClassVar[bool] = True

    policy: Policy = "deterministic"
    twin: bool = False
    policy_every: Annotated[int, Field(ge=1)] = 1
    delay_actor: bool = True
    smoothing: Annotated[float, Field(ge=0)] = 0.0
    smoothing_limit: Annotated[float, Field(gt=0)] = 0.5
    output_penalty: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy != "deterministic":
            raise UserError(f"algo.policy={self.policy}: these gradients need a deterministic policy")

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """As `Replayed`; also which targets a checkpoint holds."""
        return key == "delay_actor" or super().keeps_on_resume(key)

    @property
    def loss_class(self) -> type["DDPGLoss"]:
        return DDPGLoss


class DDPGLoss(ReplayLoss):
    """Errors of the critics against the targets' values, and minus the value of what the actors would do.

        y = r + gamma (1 - terminated) min_n Q'_n(s', mu'(s') + clip(noise))

    Sources: Lowe et al. 2017 (MADDPG), Fujimoto et al. 2018 (TD3: twin critics, delayed actors, smoothed targets). All
    agents' actions are the current actors' where an actor is improved, as in TorchRL's DDPGLoss.
    """

    def build(self, spec: EnvSpec, critic_network: Callable[..., nn.Module]) -> None:
        self.q_critics = nn.ModuleDict(
            {
                name: QCritic(spec.groups[name], critic_network, own, spec.state_size, 2 if own.twin else 1)
                for name, own in self.configs.items()
            }
        )
        self.uses_state = any(critic.uses_state for critic in self.q_critics.values())
        delayed = {name: self.target(self.actors[name]) for name, own in self.configs.items() if own.delay_actor}
        self.target_actors = nn.ModuleDict(delayed)
        self.target_critics = nn.ModuleDict({name: self.target(critic) for name, critic in self.q_critics.items()})

    def parts(self) -> dict[str, nn.Module]:
        """The actors and the critics of all groups."""
        return {"actor": self.actors, "critic": self.q_critics}

    @property
    def improves_actors(self) -> bool:
        """Whether the next minibatch trains the actors too (TD3's delayed policy updates)."""
        return (self.updates + 1) % self.config.policy_every == 0

    @property
    def trains_in_turns(self) -> bool:
        """Whether some minibatches give the actors no gradient."""
        return self.config.policy_every > 1

    @property
    def period(self) -> int:
        """As `ReplayLoss`; actors are trained every few minibatches."""
        return math.lcm(super().period, self.config.policy_every)

    def capture_key(self) -> tuple:
        """What decides `forward` beside tensors and their shapes (`marl.capture.captured_loss`)."""
        return self.training, self.improves_actors

    def forward(self, batch: Mapping) -> dict[str, Tensor]:
        """The loss of a minibatch, as `agents.collection.replay.buffer.ReplayBuffer.sample` gives it.

        Returns:
            Scalars on the device, all but "loss" detached: loss, critic_loss, q and, where actors are improved,
            actor_loss. Of a prioritised draw also td_error [B]; its weights count for the critics.
        """
        return self.summed({group: self._group(group, batch) for group in self.groups})

    def _group(self, name: str, batch: Mapping) -> dict[str, Tensor]:
        rows, own, actor, critic = batch[name], self.configs[name], self.actors[name], self.q_critics[name]
        state, next_state = (batch["state"], batch["next_state"]) if critic.uses_state else (None, None)
        alive = rows["alive"] if "alive" in actor.masks else None
        seen, b = (rows, (state, next_state), self.config.burn_in, self.unit), self.config.burn_in
        with torch.no_grad():
            policy = self.target_actors[name].network if own.delay_actor else actor
            action = Unrolled(policy, rows, b).after(None).float().tanh()
            if own.smoothing:
                limit = own.smoothing_limit
                noise = (own.smoothing * torch.randn_like(action)).clamp(-limit, limit)
                action = (action + noise).clamp(-1.0, 1.0)
            following = UnrolledCritic(self.target_critics[name].network, *seen).after(action)
        values = UnrolledCritic(critic, *seen)
        of_step = rows["reward"], ended(batch, name), batch, alive
        errors = self.errors(values.now(), following, *of_step, own.reward_scale)
        out = {"loss": errors["td_loss"], "critic_loss": errors.pop("td_loss"), **errors}
        if self.improves_actors:
            output = Unrolled(actor, rows, b).now(None).float()
            with without_gradient(critic):
                value = values.of(output.tanh())[0]
            out["actor_loss"] = -mean_over(value, alive)
            if own.output_penalty:
                out["actor_loss"] = out["actor_loss"] + own.output_penalty * mean_over(output.square().mean(-1), alive)
            out["loss"] = out["critic_loss"] + out["actor_loss"]
        return out
