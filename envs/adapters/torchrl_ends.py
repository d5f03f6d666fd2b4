"""Which agents of TorchRL's environments are alive, where groups have flags of their own.

Shapes: E environments, A agents of a group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase

Key = tuple[str, ...]
Flags = dict[str, Key]  # "done", "terminated", "truncated" -> where it lies


def whole(key: str | Key) -> Key:
    """A key as a tuple."""
    return (key,) if isinstance(key, str) else tuple(key)


def agent_flags(env: EnvBase, prefix: Key, count: int) -> Flags:
    """The flags of the group at `prefix`, where there is one for each of its agents, [E, A, 1]; else {}."""
    flags = {}
    for key in map(whole, env.done_keys):
        if prefix and key[:-1] == prefix:
            shape = env.full_done_spec[key].shape[len(env.batch_size) :]
            if len(shape) and shape[0] == count and shape.numel() == count:
                flags[key[-1]] = key
    return flags


class AgentEnds:
    """Agents whose episodes end each on its own. An agent that is over is dead until its environment restarts.

    groups: {group: (A, its flags)} of the groups that have flags of their own; without any, nothing here does anything.

    Attributes:
        alive: {group: bool [E, A]} now; before: the same, before the last step.
    """

    def __init__(self, num_envs: int, groups: Mapping[str, tuple[int, Flags]]) -> None:
        self.num_envs = num_envs
        self.flags = {name: flags for name, (_, flags) in groups.items() if flags}
        self.counts = {name: groups[name][0] for name in self.flags}
        self.keys = {key for flags in self.flags.values() for key in flags.values()}
        self.restart()

    def restart(self) -> None:
        """All are alive."""
        self.alive = {name: torch.ones(self.num_envs, A, dtype=torch.bool) for name, A in self.counts.items()}
        self.before = self.alive

    def veil(self, name: str, value: Tensor, alive: Mapping[str, Tensor]) -> Tensor:
        """[E, A, …] of a group with zeros for the dead."""
        if name not in alive:
            return value
        dead = ~alive[name].to(value.device)
        return value.masked_fill(dead.view(*dead.shape, *[1] * (value.dim() - 2)), 0)

    def _up(self, moved: TensorDictBase, name: str) -> tuple[Tensor, Tensor]:
        """Whose flags are up: over in any way, and terminated, bool [E, A] each."""
        shape = self.num_envs, self.counts[name]
        flags = {kind: moved.get(key).reshape(shape).cpu() for kind, key in self.flags[name].items()}
        return torch.stack(list(flags.values())).any(0), flags.get("terminated", torch.zeros(shape, dtype=torch.bool))

    def all_over(self, moved: TensorDictBase, kind: str) -> Tensor:
        """Where no agent is left, for "terminated" one of them by a termination in this step: bool [E]."""
        up = {name: self._up(moved, name) for name in self.alive}
        left = torch.cat([alive & ~up[name][0] for name, alive in self.alive.items()], 1).any(1)
        if kind != "terminated":
            return ~left
        return ~left & torch.cat([alive & up[name][1] for name, alive in self.alive.items()], 1).any(1)

    def step(
        self, moved: TensorDictBase, terminated: Tensor, truncated: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Whose own episode the step terminated and truncated, {group: bool [E, A]} each.

        Where the environment's episode ends, so does that of all that are left: as its own, unless a flag says how.
        """
        self.before, ended, cut = self.alive, {}, {}
        over = (terminated | truncated).unsqueeze(-1)
        for name, alive in self.before.items():
            up, own = self._up(moved, name)
            own = own | (terminated.unsqueeze(-1) & ~up)
            ended[name] = alive & own
            cut[name] = alive & ~own & (up | truncated.unsqueeze(-1))
        self.alive = {name: alive & ~ended[name] & ~cut[name] | over for name, alive in self.before.items()}
        return ended, cut
