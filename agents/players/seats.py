"""Judging one policy among others of its own group: each agent in turn is its, the rest are another player's.

Shapes: E environments, A agents in a group.
"""

import torch

from agents.models.actor import Actor
from agents.players.scripted import Player


class Seats:
    """Who plays a group of which a policy takes one agent per environment: that of episode e is agent e mod A.

    So a policy that plays a game with itself is judged in every seat, and where agents act in turn as the first and
    as the last to move.

    Args:
        judged: plays one agent of each environment.
        others: plays the rest.
        n_envs, n_agents: E and A.
        device: of the actions.

    Attributes:
        own: bool [E, A], which agents `judged` plays.
    """

    def __init__(
        self, judged: Actor | Player, others: Actor | Player, n_envs: int, n_agents: int, device: torch.device
    ) -> None:
        self.judged, self.others = judged, others
        self._shape, self._device = (n_envs, n_agents), device
        self.sit(0)

    def sit(self, first: int) -> None:
        """The environments play the episodes from number `first` on, whose seats go on from those before."""
        n_envs, n_agents = self._shape
        seat = torch.arange(first, first + n_envs, device=self._device).unsqueeze(-1) % n_agents
        self.own = seat == torch.arange(n_agents, device=self._device)


Anyone = Actor | Player | Seats  # who can play a group in an evaluation
