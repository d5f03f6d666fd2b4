"""What behaviour cloning minimises: the likelihood of a teacher's actions, and critics against its returns.

Shapes: S steps in the data, N episodes, B minibatch rows, A agents in a group, F features, D action dimensions.
"""

from collections.abc import Mapping

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from agents.algorithms.base import AgentsLoss
from agents.models.actor import Actor
from agents.models.critic import Critic


class CloneLoss(AgentsLoss):
    """−log π(teacher's action | observation), averaged over the agents (the living ones) and summed over the groups.

    The density is that of the raw action, as in PPO's loss; policies without one say what stands in for it
    (`agents.models.policy_heads.base.Head.imitation_error`). With `critic_coef` the squared error of the critics
    against the teacher's returns is added. At 0 the critics come along untrained, so that the checkpoint has the form
    of any other agents' checkpoint.
    """

    def __init__(self, actors: Mapping[str, Actor], critics: Mapping[str, Critic], critic_coef: float = 0.0) -> None:
        super().__init__()
        self.actors, self.critics = nn.ModuleDict(actors), nn.ModuleDict(critics)
        self.critic_coef = critic_coef
        self.critics.requires_grad_(critic_coef > 0)

    def forward(self, batch: TensorDict) -> dict[str, Tensor]:
        """{group: {observation [B, A, F], raw [B, A, D], mask, alive, return [B, A]}}, state → figures on the device.

        "loss", and beside it "error": mean |mode − action| in the environment's units, and "accuracy" where actions are
        choices; "value_loss" where the critics learn.
        """
        losses, values = [], []
        figures_of: dict[str, list[Tensor]] = {"error": [], "accuracy": []}  # of each group that has some
        for name, actor in self.actors.items():
            rows = batch[name]
            params = actor(rows["observation"], rows.get("mask", None))
            distance = actor.head.imitation_error(params, rows["raw"])
            alive = rows.get("alive", None)
            counts = torch.ones_like(distance) if alive is None else alive.float()
            total = counts.sum().clamp(min=1)
            losses.append((distance * counts).sum() / total)
            mode, C = actor.head.mode(params.detach()), actor.head.n_continuous
            if C:
                miss = (actor.head.to_env(mode) - actor.head.to_env(rows["raw"]))[..., :C].abs()
                figures_of["error"].append((miss.mean(-1) * counts).sum() / total)
            if C < actor.head.raw_size:
                right = (mode == rows["raw"])[..., C:].float()
                figures_of["accuracy"].append((right.mean(-1) * counts).sum() / total)
            if "return" in rows.keys():
                value = self.critics[name](rows["observation"], batch.get("state", None))
                if actor.ends:  # the dead have no return
                    error = (value - rows["return"]).square().masked_fill(~alive, 0.0)
                    values.append(error.sum() / total)
                else:
                    values.append(nn.functional.mse_loss(value, rows["return"]))
        loss = torch.stack(losses).sum()
        figures = {name: torch.stack(each).mean() for name, each in figures_of.items() if each}
        if values:
            figures["value_loss"] = torch.stack(values).sum().detach()
            loss = loss + self.critic_coef * torch.stack(values).sum()
        return {"loss": loss, **figures}


def discounted(
    reward: Tensor,
    terminated: Tensor,
    end: Tensor,
    length: Tensor,
    gamma: float,
    ends: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Discounted returns of episodes that lie one after the other.

    Args:
        reward: float32 [S, A].
        terminated: bool [S]; an episode that ends without was cut off.
        end: float32 [N, A], the value of where each episode ended, which stands for the rest of those cut off.
        length: int64 [N], steps of each episode.
        gamma: discount per step.
        ends: where an agent's own episode ended, bool [S, A], and what stands for its rest there, float32 [S, A] (0 of
            one that was terminated). Nothing is looked at across them.

    Returns:
        float32 [S, A].
    """
    stops = length.cumsum(0)
    result, following = torch.empty_like(reward), end.clone()
    following[terminated[stops - 1]] = 0.0
    for back in range(1, int(length.max()) + 1):  # all episodes at once, from their last steps to their first
        there = length >= back
        at = (stops - back)[there]
        rest = following[there] if ends is None else torch.where(ends[0][at], ends[1][at], following[there])
        following[there] = reward[at] + gamma * rest
        result[at] = following[there]
    return result
