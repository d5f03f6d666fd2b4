"""What an environment takes and gives: its groups of agents, the parts of their observations, what they may do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ActionSpec:
    """What the agents of one group may do.

    kind: "continuous" (float32 in [low, high]), "discrete" (one int64 in [0, n)), "multi_discrete" (one per nvec) or
        "hybrid": C continuous numbers, then one whole number per nvec, all of them float32.
    low, high: float32 [A, C], of continuous numbers only; infinite where there is no bound. nvec: (), (n,), …
    mask: bool [A, D], False where a narrower agent was padded; None where nothing was padded.
    """

    kind: Literal["continuous", "discrete", "multi_discrete", "hybrid"]
    low: Tensor | None = None
    high: Tensor | None = None
    nvec: tuple[int, ...] = ()
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        _ = self.bounded  # read from the device once, before any rollout

    @property
    def n_continuous(self) -> int:
        """C, the continuous numbers of one agent's action, which come first."""
        return 0 if self.low is None else self.low.shape[-1]

    @property
    def size(self) -> int:
        """D, the numbers that one agent's action holds (discrete: 1)."""
        return self.n_continuous + len(self.nvec)

    @property
    def dtype(self) -> torch.dtype:
        """Of an action: int64 where all its numbers are whole, float32 where one is continuous."""
        return torch.int64 if self.low is None else torch.float32

    @cached_property
    def bounded(self) -> bool:
        """Whether every continuous number has a finite range, padded ones included."""
        return self.low is None or self.high is None or bool((self.high - self.low).isfinite().all())

    def chosen(self, action: Tensor) -> Tensor:
        """Which choices of an action [..., A, D] there are: bool [..., A, K], whole numbers in [0, n).

        True of padded ones, which nothing reads.
        """
        choice = action[..., self.n_continuous :]
        counts = torch.tensor(self.nvec, device=action.device)
        there = (choice >= 0) & (choice < counts) & (choice == choice.long())
        return there if self.mask is None else there | ~self.mask[:, self.n_continuous :].to(action.device)

    def clamped(self, action: Tensor) -> Tensor:
        """An action [..., A, D] with its continuous numbers in [low, high]; whole ones as they are."""
        if self.low is None:
            return action
        if not self.nvec:
            return action.clamp(self.low, self.high)
        C = self.n_continuous
        return torch.cat([action[..., :C].clamp(self.low, self.high), action[..., C:]], -1)


@dataclass(frozen=True)
class ObservationPart:
    """A named part of the flat observation: `size` neighbouring features that have a shape of their own.

    name: "position", "lidar", "camera.left": keys of nested dictionaries, joined by dots.
    shape: (n,) of a vector, (C, H, W) of a picture, (N, F) of a set of N things.
    kind: "vector", "picture" or "set". scale: what features are divided by before a network reads them; 255 of bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["vector", "picture", "set"] = "vector"
    scale: float = 1.0

    @property
    def size(self) -> int:
        """The number of its features."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class GroupSpec:
    """A group of agents that share sizes of observation and action: F = observation_size, D = action.size.

    ends: whether its agents' episodes end each on its own (`Transition.agent_terminated`); "alive" is then masked too.
    parts: what the observation's F features are, in their order; () where they have no names.
    masks: what `Env.masks` tells of the group: "action" (of choices, so not "continuous"), "alive", "turn".
    in_state: features of the observation that the global state holds too; () where it was not looked for.
    """

    name: str
    agents: tuple[str, ...]
    observation_size: int
    action: ActionSpec
    masks: tuple[Literal["action", "alive", "turn"], ...] = ()
    in_state: tuple[int, ...] = ()
    ends: bool = False
    parts: tuple[ObservationPart, ...] = ()

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


def sample_actions(
    spec: EnvSpec,
    num_envs: int,
    device: torch.device,
    generator: torch.Generator | None,
    masks: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Uniform actions {group: [E, A, D]} on `device`; where actions are masked, uniform over the allowed ones.

    Without bounds they are standard normal, with one bound as far from it as an exponential number, as those of
    gymnasium's Box are. generator: the caller's, on the CPU or on `device`; None for the global one. masks: as
    `Env.masks` returns them.
    """
    actions = {}
    where = device if generator is None else generator.device
    for name, group in spec.groups.items():
        act, shape = group.action, (num_envs, group.n_agents)
        parts = []
        if act.low is not None:
            parts.append(_continuous(act, shape, device, generator, where))
        if act.nvec and "action" in group.masks:
            choices = masks[name]["action"].split(act.nvec, -1)
            ranks = [torch.rand(part.shape, generator=generator, device=where).to(device) for part in choices]
            draws = [rank.masked_fill(~part, -1.0) for rank, part in zip(ranks, choices, strict=True)]
            parts.append(torch.stack([draw.argmax(-1) for draw in draws], -1))
        elif act.nvec:
            draws = [torch.randint(n, shape, generator=generator, device=where) for n in act.nvec]
            parts.append(torch.stack(draws, -1).to(device))
        actions[name] = parts[0] if len(parts) == 1 else torch.cat([part.to(act.dtype) for part in parts], -1)
    return actions


def _continuous(
    act: ActionSpec,
    shape: tuple[int, int],
    device: torch.device,
    generator: torch.Generator | None,
    where: torch.device,
) -> Tensor:
    """The continuous numbers of `sample_actions`, float32 [E, A, C]."""
    size, low, high = (*shape, act.n_continuous), act.low, act.high
    assert low is not None and high is not None
    unit = torch.rand(size, generator=generator, device=where).to(device)
    if act.bounded:
        return low + unit * (high - low)
    normal = torch.randn(size, generator=generator, device=where).to(device)
    beyond = -torch.log1p(-unit)  # exponential: unit is below 1
    has_low, has_high = low.isfinite(), high.isfinite()
    one_sided = torch.where(has_low, low + beyond, torch.where(has_high, high - beyond, normal))
    # Bounds may be finite and yet too far apart for their difference.
    between = torch.where(has_low, low, 0.0) * (1 - unit) + torch.where(has_high, high, 0.0) * unit
    return torch.where(has_low & has_high, between, one_sided)


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
        if group.ends:
            groups[name]["ends"] = True
        if group.parts:
            groups[name]["parts"] = [{**asdict(part), "shape": list(part.shape)} for part in group.parts]
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
        parts = tuple(ObservationPart(**{**part, "shape": tuple(part["shape"])}) for part in group.get("parts", ()))
        agents, ends = tuple(group["agents"]), group.get("ends", False)
        groups[name] = GroupSpec(name, agents, group["observation_size"], action, masks, in_state, ends, parts)
    return EnvSpec(groups, description["state_size"], description["max_steps"])
