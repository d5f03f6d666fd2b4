"""Figures of the environment's own (infos): which of them are kept, how each is reduced, and a rollout's room for them.

Shapes: T time, E environments, A agents in a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from marl.core.errors import UserError

Kind = Literal["mean", "end", "sum", "min", "max"]
KINDS: tuple[str, ...] = get_args(Kind)
Rules = dict[str, list[Kind]]
DEFAULT: Rules = {"*": ["mean", "end"]}


@dataclass(frozen=True)
class InfoRules:
    """{pattern of names: how an episode's steps become one number}; the first pattern that matches decides.

    The pattern "*" is asked last, wherever it stands: keys that are added to a configuration come after it.
    """

    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @classmethod
    def of(cls, rules: Mapping[str, Sequence[str]] | None) -> InfoRules:
        """The rules of a configuration; None: nothing is kept. Raises UserError for an unknown kind."""
        for pattern, kinds in (rules or {}).items():
            for kind in kinds:
                if kind not in KINDS:
                    raise UserError(f"task.info: {pattern!r} asks for {kind!r}; {', '.join(KINDS)} are allowed")
        ordered = sorted((rules or {}).items(), key=lambda rule: rule[0] == "*")
        return cls(tuple((pattern, tuple(dict.fromkeys(kinds))) for pattern, kinds in ordered))

    def kinds(self, name: str) -> tuple[str, ...]:
        """How the figure is reduced; () where it is not kept."""
        return _kinds(self.rules, name)

    def wants(self, name: str) -> bool:
        """Whether the figure is kept."""
        return bool(_kinds(self.rules, name))

    def __bool__(self) -> bool:
        """Whether any figure could be kept."""
        return any(kinds for _, kinds in self.rules)


@lru_cache(maxsize=10_000)
def _kinds(rules: tuple[tuple[str, tuple[str, ...]], ...], name: str) -> tuple[str, ...]:
    return next((kinds for pattern, kinds in rules if fnmatchcase(name, pattern)), ())


def agents_mean(value: Tensor, leading: int) -> Tensor:
    """float32: further dimensions than the `leading` ones are averaged, what is nan among them left out."""
    value = value.float()
    return value if value.dim() == leading else value.flatten(leading).nanmean(-1)


class InfoBuffers:
    """What a rollout's infos are written to, by environments themselves or by `write`; allocated at first sight.

    Attributes:
        rules: which names are kept.
        tensors: {group: {name: float32 [T, E, A], or [T, E, A, …] where a kernel writes to it}}; nan where nothing was
            told.

    Args:
        steps: T. n_envs: E. n_agents: {group: A}.
    """

    def __init__(
        self, rules: InfoRules, steps: int, n_envs: int, n_agents: Mapping[str, int], device: torch.device | str
    ) -> None:
        self.rules, self.steps, self.n_envs, self.device = rules, steps, n_envs, device
        self.n_agents = dict(n_agents)
        self.tensors: dict[str, dict[str, Tensor]] = {group: {} for group in n_agents}

    def buffer(self, group: str, name: str, inner: tuple[int, ...] = ()) -> Tensor | None:
        """The room [T, E, A, *inner] of a figure, nan at first; None where no rule keeps it."""
        return self._room(group, name, inner) if self.rules.wants(name) else None

    def _room(self, group: str, name: str, inner: tuple[int, ...] = ()) -> Tensor:
        shape = (self.steps, self.n_envs, self.n_agents[group], *inner)
        kept = self.tensors[group].get(name)
        if kept is None or kept.shape != shape:
            kept = self.tensors[group][name] = torch.full(shape, torch.nan, device=self.device)
        return kept

    def write(self, t: int, info: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Store `Transition.info` of step t. What has no row for each environment and agent is left out."""
        for group, kept in self.tensors.items():
            told = info.get(group, {})
            for name, value in told.items():
                buffer = kept.get(name)
                if buffer is None:
                    if not self.rules.wants(name) or value.shape[:2] != (self.n_envs, self.n_agents[group]):
                        continue
                    buffer = self._room(group, name)
                buffer[t].copy_(value if value.shape == buffer.shape[1:] else agents_mean(value, 2))
            for name in kept.keys() - told.keys():
                kept[name][t].fill_(torch.nan)

    def value(self, group: str, name: str) -> Tensor:
        """float32 [T, E, A] of a figure that is kept, further dimensions averaged; all nan where it was never told."""
        kept = self.tensors[group].get(name)
        return agents_mean(self._room(group, name) if kept is None else kept, 3)
