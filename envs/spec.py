"""What an environment takes and gives: its groups of agents, the sizes of their observations, what they may do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ActionSpec:
    """What the agents of one group may do.

    kind: "continuous" (float32 in [low, high]), "discrete" (one int64 in [0, n)) or "multi_discrete" (one per nvec).
    low, high: float32 [A, D], continuous only. nvec: (), (n,) or (n1, n2, …).
    mask: bool [A, D], False where a narrower agent was padded; None where nothing was padded.
    """

    kind: Literal["continuous", "discrete", "multi_discrete"]
    low: Tensor | None = None
    high: Tensor | None = None
    nvec: tuple[int, ...] = ()
    mask: Tensor | None = None

    @property
    def size(self) -> int:
        """D, the numbers that one agent's action holds (discrete: 1)."""
        return len(self.nvec) if self.low is None else self.low.shape[-1]


@dataclass(frozen=True, eq=False)
class GroupSpec:
    """A group of agents that share sizes of observation and action: F = observation_size, D = action.size.

    masks: what `Env.masks` tells of the group: "action" (discrete kinds only), "alive", both or nothing.
    in_state: features of the observation that the global state holds too; () where it was not looked for.
    """

    name: str
    agents: tuple[str, ...]
    observation_size: int
    action: ActionSpec
    masks: tuple[Literal["action", "alive"], ...] = ()
    in_state: tuple[int, ...] = ()

    @property
    def n_agents(self) -> int:
        """A, the number of agents in the group."""
        return len(self.agents)


@dataclass(frozen=True, eq=False)
class EnvSpec:
    """Groups by name; state_size: S of the global state, None without one; max_steps: time limit, None for endless."""

    groups: dict[str, GroupSpec]
    state_size: int | None = None
    max_steps: int | None = None


def sample_actions(spec: EnvSpec, num_envs: int, device: torch.device, generator: torch.Generator | None,
                   masks: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Uniform actions {group: [E, A, D]} on `device`; where actions are masked, uniform over the allowed ones.

    generator: the caller's, on the CPU or on `device`; None for the global one. masks: as `Env.masks` returns them.
    """
    actions = {}
    where = device if generator is None else generator.device
    for name, group in spec.groups.items():
        act, shape = group.action, (num_envs, group.n_agents)
        if act.kind == "continuous":
            unit = torch.rand(*shape, act.size, generator=generator, device=where).to(device)
            actions[name] = act.low + unit * (act.high - act.low)
        elif "action" in group.masks:
            parts = masks[name]["action"].split(act.nvec, -1)
            ranks = [torch.rand(part.shape, generator=generator, device=where).to(device) for part in parts]
            draws = [rank.masked_fill(~part, -1.0) for rank, part in zip(ranks, parts, strict=True)]
            actions[name] = torch.stack([draw.argmax(-1) for draw in draws], -1)
        else:
            draws = [torch.randint(n, shape, generator=generator, device=where) for n in act.nvec]
            actions[name] = torch.stack(draws, -1).to(device)
    return actions


def describe(spec: EnvSpec) -> dict[str, Any]:
    """An environment's spec as plain Python, for checkpoints and policy files."""
    groups = {}
    for name, group in spec.groups.items():
        a = group.action
        action = {
            key: None if v is None else v.tolist() for key, v in (("low", a.low), ("high", a.high), ("mask", a.mask))
        }
        groups[name] = {
            "agents": list(group.agents),
            "observation_size": group.observation_size,
            "action": {"kind": a.kind, "nvec": list(a.nvec), **action},
            "masks": list(group.masks),
        }
    in_state = {name: list(group.in_state) for name, group in spec.groups.items() if group.in_state}
    return {"groups": groups, "state_size": spec.state_size, "max_steps": spec.max_steps, "in_state": in_state}


def spec_of(description: Mapping[str, Any]) -> EnvSpec:
    """The inverse of `describe`."""
    groups = {}
    for name, group in description["groups"].items():
        a = group["action"]
        low, high, mask = (None if a[key] is None else torch.tensor(a[key]) for key in ("low", "high", "mask"))
        action = ActionSpec(a["kind"], low, high, tuple(a["nvec"]), mask)
        masks, in_state = tuple(group.get("masks", ())), tuple(description.get("in_state", {}).get(name, ()))
        groups[name] = GroupSpec(name, tuple(group["agents"]), group["observation_size"], action, masks, in_state)
    return EnvSpec(groups, description["state_size"], description["max_steps"])
