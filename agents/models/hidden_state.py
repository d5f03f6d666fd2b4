"""What networks with a memory remember while they play: carried from step to step, forgotten at episodes' ends.

Shapes: E environments, A agents in a group, F features, S global state features.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from agents.models.actor import Actor
from agents.models.critic import Critic


def forget(memory: Tensor, done: Tensor) -> Tensor:
    """Memory [E, ...] with zeros where an episode has ended; nothing is read back from the device.

    done: bool [E], or [E, A] where each agent has a memory of its own, [E, A, M].
    """
    return torch.where(done.view(*done.shape, *[1] * (memory.dim() - done.dim())), 0.0, memory)


class Memories:
    """The memories of several networks, in E environments each.

    Args:
        modules: actors or critics by group; those without a memory (and players of other kinds) are left out.
        n_envs: E.
        device: where they live.

    Attributes:
        now: {group: float32 [E, *memory_shape]} before the next step, zeros at an episode's beginning; empty where no
            network has a memory, and then nothing here costs anything.
    """

    def __init__(self, modules: Mapping[str, Any], n_envs: int, device: torch.device) -> None:
        shapes = {name: getattr(module, "memory_shape", None) for name, module in modules.items()}
        self.now = {n: torch.zeros(n_envs, *shape, device=device) for n, shape in shapes.items() if shape}
        self._places: dict[str, Tensor] = {}  # see `stay`

    def set(self, name: str, memory: Tensor) -> None:
        """Go on from `memory`, float32 [E, *memory_shape]."""
        self.now[name] = memory

    def stay(self) -> list[Tensor]:
        """Copy what is remembered to the memory where it lay the last time this was called; that memory."""
        for name, memory in self.now.items():
            if name not in self._places:
                self._places[name] = memory.clone()
            self.now[name] = self._places[name].copy_(memory)
        return list(self._places.values())

    def forget(self, done: Tensor, agents: Mapping[str, Tensor] | None = None) -> None:
        """Begin again in the environments whose episode has ended, done bool [E].

        agents: {group: bool [E, A]} in place of `done`, of groups whose agents' episodes end each on its own.
        """
        for name, memory in self.now.items():
            self.now[name] = forget(memory, (agents or {}).get(name, done))

    def clear(self) -> None:
        """Begin again everywhere."""
        for name, memory in self.now.items():
            self.now[name] = torch.zeros_like(memory)

    def params(
        self,
        name: str,
        actor: Actor,
        observation: Tensor,
        mask: Tensor | None = None,
        alive: Tensor | None = None,
    ) -> Tensor:
        """Parameters of the policy at a step, observation [E, A, F]; what was seen is remembered.

        alive: bool [E, A]; the dead remember nothing, where their episodes end each on its own.
        """
        if name not in self.now:
            return actor(observation, mask)
        params, memory = actor.remember(observation, self.now[name], mask)
        self.now[name] = forget(memory, ~alive) if alive is not None and actor.ends else memory
        return params

    def act(
        self,
        name: str,
        actor: Actor,
        observation: Tensor,
        deterministic: bool,
        generator: torch.Generator | None,
        mask: Tensor | None = None,
        alive: Tensor | None = None,
    ) -> Tensor:
        """Actions [E, A, D] in the environment's units, for observation [E, A, F]; what was seen is remembered."""
        params = self.params(name, actor, observation, mask, alive)
        return actor.head.to_env(actor.choose(params, deterministic, generator)[0])

    def value(
        self, name: str, critic: Critic, observation: Tensor, state: Tensor | None, alive: Tensor | None = None
    ) -> Tensor:
        """Values [E, A] in units of the return; what was seen is remembered. alive: as `params`."""
        if name not in self.now:
            return critic.denormalize(critic(observation, state))
        state = None if state is None else state.unsqueeze(0)
        values, memories = critic.unroll(observation.unsqueeze(0), state, self.now[name])
        self.now[name] = memories[0] if alive is None or not critic.per_agent else forget(memories[0], ~alive)
        return critic.denormalize(values[0])
