"""HAPPO's sequential update: agents with networks of their own improve one after another (Kuba et al. 2022).

Shapes: N frames of a rollout, A agents in a group.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from agents.algorithms.ppo import PPOLoss
from agents.models.actor import Actor
from agents.models.forward import policy_params


class SequentialUpdate:
    """Which agent is trained when, and on which advantages: arXiv 2109.11251, algorithm 4.

    For a random order i_1, ..., i_A of a group, drawn again for every rollout, agent i_m maximises PPO's clipped
    objective with M in place of the advantage:

        M_m = A(s, a) * prod_{j < m} pi_new^{i_j}(a^{i_j} | o^{i_j}) / pi_old^{i_j}(a^{i_j} | o^{i_j})

    with the policies before it as their turns have left them. The critic is trained in the first turn. Several groups
    take their turns side by side; one with fewer agents is done earlier. A gradient step must not span two turns
    (trainer.accumulate=1), and DistributedDataParallel is told to look for unused parameters (`trains_in_turns`).

    Args:
        loss: the loss module; each turn selects what it trains.
    """

    def __init__(self, loss: PPOLoss) -> None:
        self.loss = loss
        self.count = max(actor.n_agents for actor in loss.actors.values())

    def turns(self, rows: dict, generator: torch.Generator) -> Iterator[None]:
        """One item per turn, to be trained on `rows` ({group: {"advantage": [N, A], ...}}), corrected between turns.

        generator: source of the order.
        """
        actors, orders = self.loss.actors, self.draw_orders(generator)
        for m in range(self.count):
            selected = {name: order[m] for name, order in orders.items() if m < len(order)}
            self.loss.select(selected, self.count if m == 0 else 0)
            yield
            for name, agent in selected.items():
                factor = correction(actors[name], agent, rows[name])
                rows[name] = rows[name] | {"advantage": rows[name]["advantage"] * factor}
        self.loss.select({}, 1)

    def draw_orders(self, generator: torch.Generator) -> dict[str, list[int]]:
        """{group: its agents in the order of their turns}: one wait for the device per iteration."""
        return {
            name: torch.randperm(actor.n_agents, generator=generator, device=generator.device).tolist()
            for name, actor in self.loss.actors.items()
        }


@torch.no_grad()
def correction(actor: Actor, agent: int, rows: dict[str, Tensor]) -> Tensor:
    """pi_new(a|o) / pi_old(a|o) of one agent, float32 [N, 1]; 1 where it is dead or not on turn.

    rows: what `PPOLoss` reads.

    Of sequences [N, L, ...]: float32 [N, L, 1].
    """
    params = policy_params(actor, rows, agent).view(*rows["log_prob"].shape, -1)
    log_ratio = (actor.head.log_prob(params, rows["action"]) - rows["log_prob"])[..., agent]
    if "alive" in rows or "counts" in rows:
        log_ratio = log_ratio.masked_fill(~rows["counts" if "counts" in rows else "alive"][..., agent], 0.0)
    return log_ratio.exp().unsqueeze(-1)
