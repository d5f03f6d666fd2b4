"""Short-horizon actor-critic (SHAC) for teams: actors improved by gradients through the simulator, and its loss.

Without a critic it is back-propagation through time (APG). Shapes: T time, E environments, B minibatch rows
(environment frames), A agents in a group, F features, S global state features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from agents.algorithms.base import AgentsLoss, Algorithm
from agents.algorithms.coefficients import Scheduled, Shape
from agents.algorithms.ppo_losses import clipped_surrogate, value_loss
from agents.models import saved_weights
from agents.models.action_values.target_networks import TargetNetwork
from agents.models.actor import Actor
from agents.models.actor_critic import build_networks
from agents.models.critic import Critic
from agents.models.policy_heads.exploring import EXPLORING
from envs.spec import EnvSpec
from marl.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SHAC(Algorithm):
    """Settings of SHAC and APG; `conf/algo/base/shac.yaml` explains each.

    Args:
        lam: lambda of the critic's targets.
        rollout_steps: steps of a window, through which the actors' gradients go.
        epochs, minibatch_size: of the critic, on each window.
        bootstrap: whether a critic stands for what follows a window; without it nothing does (APG).
        tau: share of the critic that its target takes over after each window.
        entropy_coef, entropy_schedule, entropy_final: weight of the entropy bonus.
        ppo_coef: weight of PPO's loss of the policy in the critics' minibatches; 0 = there is none.
        clip: of its probability ratio.

    Raises:
        UserError: as `Algorithm`, or ppo_coef without a critic or for a policy without a density.
    """

    per_iteration: ClassVar[tuple[str, ...]] = ("epochs", "minibatch_size")
    divided: ClassVar[tuple[str, ...]] = ("minibatch_size",)
    common: ClassVar[tuple[str, ...]] = (
        *(*Algorithm.common, "rollout_steps", "epochs", "minibatch_size", "bootstrap", "tau"),
        *("entropy_coef", "entropy_schedule", "entropy_final", "ppo_coef", "clip"),
    )

    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    rollout_steps: Annotated[int, Field(ge=1)] = 20
    epochs: Annotated[int, Field(ge=1)] = 2
    minibatch_size: Annotated[int, Field(ge=1)] | None = 300
    bootstrap: bool = True
    tau: Annotated[float, Field(gt=0, le=1)] = 0.2
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    entropy_schedule: Shape = "constant"
    entropy_final: Annotated[float, Field(ge=0)] = 0.0
    ppo_coef: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ppo_coef and not self.bootstrap:
            raise UserError(f"algo.ppo_coef={self.ppo_coef}: its advantages need a critic, algo.bootstrap=true")
        if self.ppo_coef and self.policy in EXPLORING:
            raise UserError(f"algo.ppo_coef={self.ppo_coef}: algo.policy={self.policy} has no density; use auto")

    @classmethod
    def keeps_on_resume(cls, key: str) -> bool:
        """As `Algorithm`; also what frames are counted in, and whether there are critics."""
        return key in ("rollout_steps", "bootstrap") or super().keeps_on_resume(key)

    @property
    def loss_class(self) -> type["SHACLoss"]:
        return SHACLoss

    def make_loss(
        self,
        spec: EnvSpec,
        network: Callable[..., nn.Module],
        critic_network: Callable[..., nn.Module] | None = None,
        configs: Mapping[str, Self] | None = None,
        **more: Any,
    ) -> nn.Module:
        """As `Algorithm.make_loss`; no critics without `bootstrap`."""
        actors, critics = build_networks(self, spec, network, critic_network, configs, self.bootstrap)
        return self.loss_class(actors, critics, self, configs, **more)


class SHACLoss(AgentsLoss):
    """Minus the actors' discounted returns of a window, with its gradient through the simulator; errors of the critics.

        actor:   -mean over E, A of  sum_t gamma^(t - t0) r_t  +  gamma^(end - t0) V'(s_end)
        critic:  (V(s_t) - G_t)^2,   G_t = r_t + gamma ((1 - lambda) V'(s_{t+1}) + lambda G_{t+1})

    With `ppo_coef` c the critics' minibatches train the actors, too, from the same window:

        c * PPO's clipped surrogate of pi / pi_old and of A_t = G_t - V'(s_t), normalised over the window

    pi_old is the policy that played the window, so that the step back through the simulator counts as a move from it.

    Source: Xu et al. 2022 (arXiv 2204.07137), equations 5 to 7. V' is the target critic, its weights being constants.
    t0 is the window's first step, or the first after an episode's end: each segment of the window has a sum of its own.
    A segment that is cut off, by the time limit or by the window's end, is bootstrapped from the true final
    observation, a terminated one is not. Agents of a group maximise the mean of their returns, so that an agent's
    gradient holds what it does to the others' rewards; each group follows the gradient of its own return only.

    Attributes:
        actors, critics: the modules it trains, by group; no critics without `bootstrap`.
        targets: {group: the critic's target network}.
    """

    def __init__(
        self,
        actors: Mapping[str, Actor],
        critics: Mapping[str, Critic],
        config: SHAC,
        configs: Mapping[str, SHAC] | None = None,
        partly: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.actors, self.critics = nn.ModuleDict(actors), nn.ModuleDict(critics)
        self.config, self.groups = config, tuple(actors)
        self.configs = {group: config for group in self.groups} | dict(configs or {})
        self.targets = nn.ModuleDict({name: TargetNetwork(critic, config.tau) for name, critic in critics.items()})
        self.uses_state = any(critic.uses_state for critic in critics.values())
        self.entropy_coef = Scheduled(config.entropy_coef, config.entropy_schedule, config.entropy_final)
        self.register_load_state_dict_pre_hook(lambda module, saved, *_: self.complete(saved))

    def parts(self) -> dict[str, nn.Module]:
        """Named parts of the model, for learning rates, freezing and gradient norms."""
        return {"actor": self.actors, **({"critic": self.critics} if len(self.critics) else {})}

    def complete(self, saved: dict[str, Tensor]) -> list[str]:
        """Make another algorithm's saved weights fit (`agents.models.saved_weights.fit`).

        Where they hold critics without targets, such as MAPPO's, the targets begin as these.
        """
        notes = saved_weights.fit(self, saved)
        for name in self.targets:
            prefix, network = f"critics.{name}.", f"targets.{name}.network."
            if not any(key.startswith(network) for key in saved):
                found = {key: value for key, value in saved.items() if key.startswith(prefix)}
                saved.update({network + key.removeprefix(prefix): value for key, value in found.items()})
        return notes

    def capture_key(self) -> tuple:
        """What decides `forward` beside tensors and their shapes (`marl.capture.captured_loss`)."""
        return (self.training,)

    def advance(self, progress: float) -> dict[str, float]:
        """Set what is scheduled to its value at `progress` of the run, 0 to 1; those values by name."""
        coef = self.entropy_coef
        return {} if coef.shape == "constant" else {"entropy_coef": coef.advance(progress)}

    def follow(self) -> None:
        """The critics have learnt from a window: the targets follow."""
        for target in self.targets.values():
            target.follow(1)

    def learn_inputs(self, observations: Mapping[str, Tensor], states: Tensor | None) -> None:
        """Take what a window saw into the statistics of the networks' inputs, which stand still where it is frozen.

        Args:
            observations: {group: float32 [T, E, A, F]}.
            states: float32 [T, E, S], or None.
        """
        for name, actor in self.actors.items():
            if not self.configs[name].normalize_observation:
                continue
            if _trains(actor):
                actor.inputs.learn(observations[name])
            if name in self.critics and _trains(self.critics[name]):
                self.critics[name].learn_inputs(observations[name], states)

    def forward(self, batch: Mapping) -> dict[str, Tensor]:
        """The loss of a minibatch.

        Args:
            batch: of the actors {group: {objective float32 [E, A], with its graph (`returns_of_window`), and entropy
                [E, A] where it counts}}; of the critics {group: {observation float32 [B, A, F], return float32
                [B, A]}}, and "state" float32 [B, S] where a critic uses it; with `ppo_coef` also action [B, A, D] as
                the head draws it, log_prob and advantage float32 [B, A].

        Returns:
            Scalars on the device, all but "loss" detached: loss, and actor_loss and entropy, or value_loss and with
            `ppo_coef` policy_loss, approx_kl and clip_fraction.
            With several groups the losses are sums and entropies means, and each group's own follow by name.
        """
        of_actors = "objective" in batch[self.groups[0]].keys()  # noqa: SIM118 - a TensorDict iterates over rows
        parts = self._actors(batch) if of_actors else self._critics(batch)
        total = dict(parts[self.groups[0]])
        if len(parts) > 1:
            for key in total:
                values = [part[key] for part in parts.values()]
                total[key] = sum(values) if key.endswith("loss") else sum(values) / len(values)
            total |= {f"{group}/{key}": value for group, part in parts.items() for key, value in part.items()}
        return {key: value if key == "loss" else value.detach() for key, value in total.items()}

    def _actors(self, batch: Mapping) -> dict[str, dict[str, Tensor]]:
        parts = {}
        for name in self.groups:
            rows = batch[name]
            loss = -rows["objective"].mean()
            parts[name] = {"loss": loss, "actor_loss": loss}
            if self.entropy_coef.matters:
                parts[name]["entropy"] = rows["entropy"].mean()
                parts[name]["loss"] = loss - self.entropy_coef.value * parts[name]["entropy"]
        if len(parts) > 1:
            for name, part in parts.items():
                own = [p for p in self.actors[name].parameters() if p.requires_grad]
                gradients = torch.autograd.grad(part["loss"], own, retain_graph=True, allow_unused=True)
                part["loss"] = _WithGradients.apply(part["loss"].detach(), gradients, *own)
        return parts

    def _critics(self, batch: Mapping) -> dict[str, dict[str, Tensor]]:
        parts = {}
        for name, critic in self.critics.items():
            rows = batch[name]
            value = critic(rows["observation"], batch["state"] if critic.uses_state else None)
            loss = value_loss(value, rows["return"]).mean()
            parts[name] = {"loss": loss, "value_loss": loss}
            if self.config.ppo_coef:
                policy = self._surrogate(self.actors[name], rows)
                parts[name] |= policy | {"loss": loss + self.config.ppo_coef * policy["policy_loss"]}
        return parts

    def _surrogate(self, actor: Actor, rows: Mapping) -> dict[str, Tensor]:
        """PPO's loss of the policy, and how far the policy is from the one that played."""
        log_prob = actor.head.log_prob(actor(rows["observation"]), rows["action"])
        terms = clipped_surrogate(log_prob - rows["log_prob"], rows["advantage"], self.config.clip)
        return dict(zip(("policy_loss", "approx_kl", "clip_fraction"), terms, strict=True))


class _WithGradients(torch.autograd.Function):
    """A value whose gradients of these parameters are there already: what other groups' weights do to it is left out.

    The gradients of all groups' losses by all weights would let one group work for the other.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor | None, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if own is None else gradient * own for own in ctx.gradients)


def returns_of_window(
    reward: Tensor, terminated: Tensor, truncated: Tensor, final_value: Mapping[int, Tensor], gamma: float
) -> Tensor:
    """Discounted returns of a window's segments, summed, with the gradients of rewards and values.

    Args:
        reward: float32 [T, E, A].
        terminated, truncated: bool [T, E].
        final_value: {t: float32 [E, A]}: values of the true next observations, of the steps in which some episode was
            cut off and of the last; {} = nothing follows.
        gamma: discount, which begins again after an episode's end.

    Returns:
        float32 [E, A].
    """
    last, discount, discounts = len(reward) - 1, torch.ones_like(reward[0, :, :1]), []
    bootstrapped = []
    done = (terminated | truncated).unsqueeze(-1)
    for t in range(len(reward)):
        discounts.append(discount)
        discount = discount * gamma
        if t in final_value:
            cut = ~terminated[t] if t == last else truncated[t]
            bootstrapped.append((discount * final_value[t]).masked_fill(~cut.unsqueeze(-1), 0.0))
        discount = torch.where(done[t], 1.0, discount)
    total = (torch.stack(discounts) * reward).sum(0)
    return total + torch.stack(bootstrapped).sum(0) if bootstrapped else total


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
