"""Clipped PPO for groups of agents: settings, and the loss module the engine trains.

IPPO and MAPPO are this same code: they differ in `PPO.critic` (Yu et al. 2022, arXiv 2103.01955).
Shapes: B minibatch rows (environment frames), A agents in a group, F features, D action dimensions, S state
features.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from agents.algorithms.advantages import Normalization
from agents.algorithms.base import AgentsLoss
from agents.algorithms.coefficients import Scheduled, Shape
from agents.algorithms.on_policy import OnPolicyAlgorithm, Update
from agents.algorithms.ppo_losses import ValueLoss, clipped_surrogate, counted, mean_weights, value_loss
from agents.models import saved_weights
from agents.models.actor import Actor
from agents.models.critic import Critic
from agents.models.forward import flat, policy_params, values
from agents.models.policy_heads.exploring import EXPLORING
from marl.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PPO(OnPolicyAlgorithm):
    """Settings of IPPO and MAPPO; `conf/algo/ppo.yaml` explains each.

    Raises:
        UserError: as `OnPolicyAlgorithm`, a policy without a density, or a shared network for update=sequential.
    """

    common: ClassVar[tuple[str, ...]] = (*OnPolicyAlgorithm.common, "update", "target_kl")

    update: Update = "joint"
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
    normalize_advantage: Normalization = "none"
    target_kl: Annotated[float, Field(gt=0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy in EXPLORING:
            raise UserError(f"algo.policy={self.policy}: has no density; use auto, which fits the actions")
        if self.update == "sequential" and (self.share_actor == "shared" or self.std == "independent"):
            raise UserError("algo.update=sequential: needs algo.share_actor=separate and algo.std=state.")

    @property
    def loss_class(self) -> type["PPOLoss"]:
        """The module that trains by these settings; an algorithm of one's own names another."""
        return PPOLoss


class PPOLoss(AgentsLoss):
    """Policy, value and entropy losses of every group of agents, from one minibatch.

    Attributes:
        actors, critics: the modules it trains, by group.
        selected_agents, value_loss_scale: see `select`.
        configs: {group: its settings}, `config` unless it has its own.

    Args:
        actors, critics: by group.
        config: settings of all groups.
        configs: {group: its own settings} of those that have some.
        partly: groups that do not act everywhere themselves: their batches have "own", which rows of it count.

    The advantage is taken as it comes: normalising it is the rollout's business (`normalize_advantage`).
    Everything is computed on the device, nothing is read back; entropy is computed only where it counts.
    Entropy of a squashed Gaussian draws from the device's default random generator, everything else is
    deterministic.
    """

    def __init__(
        self,
        actors: Mapping[str, Actor],
        critics: Mapping[str, Critic],
        config: PPO,
        configs: Mapping[str, PPO] | None = None,
        partly: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.actors = nn.ModuleDict(actors)
        self.critics = nn.ModuleDict(critics)
        self.config = config
        self.groups = tuple(self.actors)
        self.configs = {group: config for group in self.groups} | dict(configs or {})
        self.partly = frozenset(partly)
        self.select({}, 1)
        self.uses_state = any(critic.uses_state for critic in self.critics.values())
        self.recurrent = any(module.memory_shape for module in (*self.actors.values(), *self.critics.values()))
        self.clip, self.entropy_coef = scheduled(config)
        by_group = {group: nn.ModuleList(scheduled(each)) for group, each in self.configs.items() if each is not config}
        self.own: Any = nn.ModuleDict(by_group)  # {group: clip and entropy_coef}; nothing of it is saved

    @property
    def trains_in_turns(self) -> bool:
        """Whether some minibatches give some agents no gradient."""
        return self.config.update == "sequential"

    def parts(self) -> dict[str, nn.Module]:
        """Named parts of the model, for learning rates, freezing and gradient norms."""
        return {"actor": self.actors, "critic": self.critics}

    def complete(self, saved: dict[str, Tensor]) -> list[str]:
        """Make another algorithm's saved weights fit (`agents.models.saved_weights.fit`)."""
        return saved_weights.fit(self, saved)

    def forward(self, batch: Mapping) -> dict[str, Tensor]:
        """The loss of a minibatch.

        Args:
            batch: TensorDict or nested dict {group: {observation float32 [B, A, F], action (raw) [B, A, D],
                log_prob float32 [B, A], advantage float32 [B, A], return float32 [B, A], value float32 [B, A]
                (read only with value_clip), mask bool [B, A, n_features] and alive bool [B, A] (read only where
                the group has such masks), counts bool [B, A] (read only where agents act in turn: who is on turn, alive
                and itself), own bool [B, A] (read only of the groups in `partly`)}}, and "state" float32 [B, S] where a
                critic uses it. Where a network has a memory the rows are sequences,
                [B, L, ...], as `agents.collection.sequences.Sequences.rows` makes them.

        Returns:
            Scalars on the device, all but "loss" detached: loss (to minimise), policy_loss, value_loss,
            entropy (only with entropy_coef > 0), approx_kl, clip_fraction. With several groups the losses are
            sums and the diagnostics means over the groups, and each group's own follow as "group/policy_loss"
            and so on.
        """
        state = batch["state"] if self.uses_state else None
        parts = {group: self._group(group, batch[group], state) for group in self.groups}
        total = dict(parts[self.groups[0]])
        if len(parts) > 1:
            for key in dict.fromkeys(key for part in parts.values() for key in part):
                have = [part[key] for part in parts.values() if key in part]  # not every group need have an entropy
                whole = reduce(add, have)
                total[key] = whole if key.endswith("loss") else whole / len(have)
        out = {key: x if key == "loss" else x.detach() for key, x in total.items()}
        if len(parts) > 1:
            out |= {f"{g}/{key}": x.detach() for g, part in parts.items() for key, x in part.items()}
        return out

    def select(self, agents: Mapping[str, int], value_loss_scale: int) -> None:
        """Say what the next minibatches train, for `agents.algorithms.happo`.

        Args:
            agents: {group: the agent to train}; groups that are not named are left out. {} = all agents of all groups.
            value_loss_scale: 0 = the critics are left out; else the critics' loss is reported times this.
        """
        self.selected_agents, self.value_loss_scale = dict(agents), value_loss_scale

    def capture_key(self) -> tuple:
        """What decides `forward` beside tensors and their shapes (`marl.capture.captured_loss`)."""
        return self.training, *self.selected_agents.items(), self.value_loss_scale, self.partly

    def advance(self, progress: float) -> dict[str, float]:
        """Set what is scheduled to its value at `progress` of the run, 0 to 1; those values by name."""
        moving = {"clip": self.clip, "entropy_coef": self.entropy_coef}
        for group, (clip, entropy_coef) in self.own.items():
            moving |= {f"{group}/clip": clip, f"{group}/entropy_coef": entropy_coef}
        return {name: each.advance(progress) for name, each in moving.items() if each.shape != "constant"}

    def learn_inputs(
        self, observations: Mapping[str, Tensor], states: Tensor | None, alive: Mapping[str, Tensor]
    ) -> None:
        """Take what a rollout saw into the statistics of the networks' inputs; observations of the dead are left out.

        Statistics of a frozen network stand still, as its weights do.

        Args:
            observations: {group: float32 [T, E, A, F]}.
            states: float32 [T, E, S], or None.
            alive: {group: bool [T, E, A]} of the groups whose agents may die.
        """
        if not any(config.normalize_observation for config in self.configs.values()):
            return
        for name in self.groups:
            counts = alive.get(name)  # chosen by them, rows would have a number that a GPU's host waits for
            if _trains(self.actors[name]):
                self.actors[name].inputs.learn(observations[name], counts)
            if _trains(self.critics[name]):
                self.critics[name].learn_inputs(observations[name], states, counts)

    def surrogate(
        self,
        log_ratio: Tensor,
        advantage: Tensor,
        weight: Tensor | None,
        clip: float | Tensor,
        dual: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The policy's loss to minimise, approx_kl and clip_fraction; see
        `agents.algorithms.ppo_losses.clipped_surrogate`.

        clip, dual: the group's own, as they now are.
        """
        return clipped_surrogate(log_ratio, advantage, clip, dual, weight)

    def _group(self, group: str, batch: Mapping, state: Tensor | None) -> dict[str, Tensor]:
        cfg, actor = self.configs[group], self.actors[group]
        clip, entropy_coef = self.own[group] if group in self.own else (self.clip, self.entropy_coef)
        observation = batch["observation"]
        if self.selected_agents and group not in self.selected_agents:  # its agents have all had their turn
            names = ["loss", "policy_loss", "value_loss", *["entropy"] * entropy_coef.matters]
            return dict.fromkeys([*names, "approx_kl", "clip_fraction"], observation.new_zeros(()))
        only = self.selected_agents.get(group)
        params = policy_params(actor, batch, only)
        rows = flat(batch) if self.recurrent else batch
        if entropy_coef.matters:
            log_prob, entropy = actor.head.log_prob_and_entropy(params, rows["action"])
        else:
            log_prob, entropy = actor.head.log_prob(params, rows["action"]), None
        log_ratio, weight, own = log_prob - rows["log_prob"], None, None
        turns = "turn" in actor.masks
        if only is not None or turns or "alive" in actor.masks or group in self.partly:
            counts = rows["counts"] if turns else rows["alive"] if "alive" in actor.masks else None
            counts = counted(log_ratio, counts, only)
            if turns:  # the critic learns from own turns, too
                own = rows["counts"]
            elif group in self.partly:
                own = rows["own"]
                counts = counts & own
            log_ratio, weight = log_ratio.masked_fill(~counts, 0.0), mean_weights(counts)
        settings = weight, clip.value, cfg.dual_clip
        policy, approx_kl, clip_fraction = self.surrogate(log_ratio, rows["advantage"], *settings)
        if self.value_loss_scale:
            value = values(self.critics[group], batch, state)
            old = rows["value"] if cfg.value_clip is not None else None
            critic = value_loss(value, rows["return"], old, cfg.value_loss, cfg.huber_delta, cfg.value_clip)
            if actor.ends:  # a dead agent has no return: its episode is over
                own = rows["alive"] if own is None else own & rows["alive"]
            critic = critic.mean() if own is None else (critic.masked_fill(~own, 0.0) * mean_weights(own)).sum()
        else:
            critic = policy.new_zeros(())
        out = {"loss": policy + cfg.critic_coef * critic, "policy_loss": policy}
        scale = self.value_loss_scale
        out["value_loss"] = critic if scale == 1 else critic.detach() * scale
        if entropy is not None:
            out["entropy"] = entropy.mean() if weight is None else (entropy * weight).sum()
            out["loss"] = out["loss"] - entropy_coef.value * out["entropy"]
        return out | {"approx_kl": approx_kl, "clip_fraction": clip_fraction}


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def scheduled(config: PPO) -> tuple[Scheduled, Scheduled]:
    """The clip and the entropy's coefficient of some settings, as they move over a run."""
    return (
        Scheduled(config.clip, config.clip_schedule, config.clip_final),
        Scheduled(config.entropy_coef, config.entropy_schedule, config.entropy_final),
    )
