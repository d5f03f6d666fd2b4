"""Parallelised Q-learning without replay buffer and target network, for agents alone (PQN) and teams (PQN-VDN).

Shapes: T time, E environments, B minibatch rows (environment frames), A agents in a group, F features, K choices.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from agents.algorithms.exploration import ExploringAlgorithm, ExploringLoss, mean_over
from agents.algorithms.on_policy import OnPolicyAlgorithm
from agents.models.actor import Actor
from agents.models.heads import Policy
from envs.spec import EnvSpec
from marl.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PQN(ExploringAlgorithm, OnPolicyAlgorithm):
    """Settings of PQN and PQN-VDN; `conf/algo/base/pqn.yaml` explains each.

    Raises:
        UserError: as `OnPolicyAlgorithm`, or another policy than the greedy one.
    """

    common: ClassVar[tuple[str, ...]] = (*OnPolicyAlgorithm.common, *ExploringAlgorithm.common)

    policy: Policy = "epsilon_greedy"
    mixer: Literal["none", "sum"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy != "epsilon_greedy":
            raise UserError(f"algo.policy={self.policy}: these values need epsilon_greedy")

    @property
    def of_the_team(self) -> bool:
        """Whether rewards and values are a team's instead of its agents'."""
        return self.mixer == "sum"

    @property
    def loss_class(self) -> type["PQNLoss"]:
        return PQNLoss


class GreedyValue:
    """The value of the best choice, where `agents.tasks.on_policy` asks for a critic's.

    Args:
        actor: whose values.
        team: sum them over the agents, which are one then.
    """

    uses_state, memory_shape, reads_masks = False, None, True

    def __init__(self, actor: Actor, team: bool) -> None:
        self.actor, self.team = actor, team

    def __call__(self, observation: Tensor, state: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """float32 [..., A, F] -> [..., A], of a team [..., 1]. mask: bool [..., A, K]; None = all is allowed."""
        value = self.actor(observation, mask).amax(-1)
        return value.sum(-1, keepdim=True) if self.team else value

    def denormalize(self, value: Tensor) -> Tensor:
        """Values are in units of the return."""
        return value

    def learn_scale(self, returns: Tensor, value: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Nothing is scaled."""
        return returns, value


class PQNLoss(ExploringLoss):
    """Errors of action values against lambda-returns of the rollout (Gallici et al. 2025).

        G_t = r_t + gamma ((1 - lambda) max_a Q(s_{t+1}, a) + lambda G_{t+1})

    cut where episodes end, as `agents.algorithms.advantages.gae` does it: its returns are these, with the values of the
    best choices in the place of a critic's. Layer norm in the network stands in for a target network there. sum: the
    team's value is the sum of its agents' (Sunehag et al. 2018), its reward the mean of theirs.
    """

    def build(self, spec: EnvSpec, critic_network: Callable[..., nn.Module]) -> None:
        for name, actor in self.actors.items():
            if actor.memory_shape is not None:
                raise UserError("network: has a memory, which algo=pqn does not train; use one without, network=mlp")
            if self.configs[name].mixer == "sum" and spec.groups[name].ends:
                raise UserError(f"algo.mixer=sum: the agents of {name} end each on its own; algo=pqn has no mixer")
        self.critics = {name: GreedyValue(actor, self.configs[name].of_the_team) for name, actor in self.actors.items()}

    def capture_key(self) -> tuple:
        """What decides `forward` beside tensors and their shapes (`marl.capture.captured_loss`)."""
        return (self.training,)

    def learn_inputs(
        self, observations: Mapping[str, Tensor], states: Tensor | None, alive: Mapping[str, Tensor]
    ) -> None:
        """Take what a rollout saw into the statistics of the networks' inputs, as `PPOLoss.learn_inputs`."""
        for name, actor in self.actors.items():
            if self.configs[name].normalize_observation:
                actor.inputs.learn(observations[name], alive.get(name))

    def forward(self, batch: Mapping) -> dict[str, Tensor]:
        """The loss of a minibatch.

        Args:
            batch: {group: {observation float32 [B, A, F], action int64 [B, A, 1], return float32 [B, A] ([B, 1] of a
                team), and where there are such masks mask bool [B, A, K], alive, counts bool [B, A]}}.

        Returns:
            Scalars on the device, all but "loss" detached: loss, td_loss (the same), q (mean value of the actions).
        """
        return self.summed({group: self._group(group, batch[group]) for group in self.groups})

    def _group(self, name: str, rows: Mapping) -> dict[str, Tensor]:
        actor = self.actors[name]
        mask = rows["mask"] if "action" in actor.masks else None
        counts = rows["counts"] if "turn" in actor.masks else rows["alive"] if "alive" in actor.masks else None
        q = actor(rows["observation"], mask).gather(-1, rows["action"]).squeeze(-1)
        mean_q = mean_over(q.detach(), counts)
        if self.configs[name].of_the_team:
            q = (q if counts is None else q * counts).sum(-1, keepdim=True)
            counts = None
        loss = mean_over(self.error(q, rows["return"]), counts)
        return {"loss": loss, "td_loss": loss, "q": mean_q}
