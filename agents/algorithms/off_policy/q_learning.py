"""Q-learning for teams: independent (IQL), by a sum (VDN) or by a monotone mixer (QMIX).

They are one loss and differ in `QLearning.mixer`. Shapes: B minibatch rows, A agents in a group, F features, K choices,
S state features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from agents.algorithms.exploration import mean_over
from agents.algorithms.off_policy.replayed import Replayed, ReplayLoss, ended
from agents.models.action_values.mixer import MonotonicMixer, SumMixer
from agents.models.heads import Policy
from agents.models.replayed_sequences import Unrolled
from envs.spec import EnvSpec
from marl.core.errors import UserError

Mixer = Literal["none", "sum", "monotonic"]
MixerState = Literal["state", "observations"]


@dataclass(frozen=True, kw_only=True)
class QLearning(Replayed):
    """Settings of IQL, VDN and QMIX; `conf/algo/base/q_learning.yaml` explains each.

    Raises:
        UserError: as `Algorithm`, or another policy than the greedy one.
    """

    recurrent: ClassVar[bool] = True

    policy: Policy = "epsilon_greedy"
    mixer: Mixer = "none"
    mixer_state: MixerState = "observations"
    mixer_embed: Annotated[int, Field(ge=1)] = 32
    double: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy != "epsilon_greedy":
            raise UserError(f"algo.policy={self.policy}: these values need epsilon_greedy")

    @property
    def loss_class(self) -> type["QLearningLoss"]:
        return QLearningLoss


class QLearningLoss(ReplayLoss):
    """Squared errors of action values against one-step (or n-step) targets of a target network.

        y = r + gamma (1 - terminated) Q'(s', argmax_a Q(s', a))        double Q-learning (van Hasselt et al. 2016)

    none: of every agent by itself (Tan 1993). sum: of the sum over the agents (Sunehag et al. 2018). monotonic: of a
    mixer of them (Rashid et al. 2018). A team's reward is the mean of its agents'.
    """

    def build(self, spec: EnvSpec, critic_network: Callable[..., nn.Module]) -> None:
        self.mixers = nn.ModuleDict()
        for name, own in self.configs.items():
            if own.mixer == "none":
                continue
            group = spec.groups[name]
            size = group.n_agents * group.observation_size
            if own.mixer_state == "state":
                if spec.state_size is None:
                    raise UserError(
                        "algo.mixer_state=state: this environment offers no global state; use observations, or switch "
                        "it on (env.global_state=true in VMAS)"
                    )
                size, self.uses_state = spec.state_size, True
            is_sum = own.mixer == "sum"
            self.mixers[name] = SumMixer() if is_sum else MonotonicMixer(group.n_agents, size, own.mixer_embed)
        self.target_actors = nn.ModuleDict({name: self.target(actor) for name, actor in self.actors.items()})
        self.target_mixers = nn.ModuleDict({name: self.target(mixer) for name, mixer in self.mixers.items()})

    def parts(self) -> dict[str, nn.Module]:
        """The values ("actor") and, where they have weights, the mixers ("mixer")."""
        return {"actor": self.actors, **({"mixer": self.mixers} if any(True for _ in self.mixers.parameters()) else {})}

    def capture_key(self) -> tuple:
        """What decides `forward` beside tensors and their shapes (`marl.capture.captured_loss`)."""
        return (self.training,)

    def forward(self, batch: Mapping) -> dict[str, Tensor]:
        """The loss of a minibatch, as `agents.collection.replay.buffer.ReplayBuffer.sample` gives it.

        Returns:
            Scalars on the device, all but "loss" detached: loss, td_loss (the same), q (mean value of the actions). Of
            a prioritised draw also td_error [B].
        """
        return self.summed({group: self._group(group, batch) for group in self.groups})

    def _group(self, name: str, batch: Mapping) -> dict[str, Tensor]:
        rows, own, actor = batch[name], self.configs[name], self.actors[name]
        masked, lives = "action" in actor.masks, "alive" in actor.masks
        mask, next_mask = (rows["mask"], rows["next_mask"]) if masked else (None, None)
        online = Unrolled(actor, rows, self.config.burn_in)
        q = online.now(mask).gather(-1, rows["action"]).squeeze(-1)  # [B, A]
        with torch.no_grad():
            next_q = Unrolled(self.target_actors[name].network, rows, self.config.burn_in).after(next_mask)
            if own.double:
                choice = online.after(next_mask).argmax(-1, keepdim=True)
                following = next_q.gather(-1, choice).squeeze(-1)
            else:
                following = next_q.amax(-1)
        alive = rows["alive"] if lives else None
        mean_q = mean_over(q.detach(), alive)
        reward = rows["reward"] if own.reward_scale == 1 else own.reward_scale * rows["reward"]
        if name in self.mixers:
            if lives:
                q, following = q * alive, following * rows["next_alive"]
            if "terminated" in rows.keys():  # the team goes on without who has ended
                following = following.masked_fill(rows["terminated"], 0.0)
            state, next_state = self._states(own, batch, rows)
            q = self.mixers[name](q, state)
            with torch.no_grad():
                following = self.target_mixers[name](following, next_state)
            reward, alive = reward.mean(-1), None
        over = batch["terminated"] if name in self.mixers else ended(batch, name)
        out = self.errors(q.unsqueeze(0), following.unsqueeze(0), reward, over, batch, alive)
        return {"loss": out["td_loss"], **out, "q": mean_q}

    def _states(self, own: QLearning, batch: Mapping, rows: Mapping) -> tuple[Tensor, Tensor]:
        if own.mixer_state == "state":
            return batch["state"], batch["next_state"]
        return rows["observation"].flatten(1), rows["next_observation"].flatten(1)
