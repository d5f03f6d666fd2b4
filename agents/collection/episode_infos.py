"""Infos reduced over the episodes that end, carried over from one rollout to the next.

Shapes: T time, E environments, A agents in a group, N columns: the agents of several figures side by side.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from envs.base import Env, Transition
from envs.infos import InfoBuffers, InfoRules
from marl.core import distributed

CHUNK = 128  # steps of evaluations that are reduced together


def running_totals(values: Tensor, done: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of an episode up to and including each step, and of what still runs at the end.

    A running sum less its value at the previous end: no loop over time.

    Args:
        values: float32 [T, E, N].
        done: bool [T, E].
        carry: float32 [E, N], what the running episodes had before.

    Returns:
        float32 [T, E, N] and [E, N].
    """
    total = values.cumsum(0) + carry
    time = torch.arange(len(values), device=values.device).unsqueeze(-1)
    ended = torch.where(done, time, -1).cummax(0).values  # [T, E]: latest end up to and including t

    def before(last: Tensor) -> Tensor:
        """The running sum at step `last` [..., E] (0 where there is none)."""
        index = last.clamp(min=0).unsqueeze(-1).expand(*last.shape, values.shape[-1])
        return total.gather(0, index).mul_((last >= 0).unsqueeze(-1))

    previous = torch.cat([torch.full_like(ended[:1], -1), ended[:-1]])
    return total - before(previous), (total[-1:] - before(ended[-1:]))[0]


def running_maxima(values: Tensor, done: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
    """As `running_totals`, of the largest value; [T, E, N] holds those of whole episodes only, where `done`."""
    number = done.cumsum(0) - done.long()  # [T, E]: the how manieth episode of the rollout a step belongs to
    index = number.unsqueeze(-1).expand_as(values)
    largest = torch.full((len(values) + 1, *values.shape[1:]), -torch.inf, device=values.device)
    largest[0] = carry
    largest.scatter_reduce_(0, index, values, "amax")
    last = done.sum(0).view(1, -1, 1).expand(1, *values.shape[1:])
    return largest.gather(0, index), largest.gather(0, last)[0]


class EpisodeInfos:
    """Reductions of a run's infos over its episodes, by `rules`. Numbers that are not finite are left out.

    Attributes:
        carry: {group: {name: {"sum" | "told" | "max" | "min": float32 [E, A]}}}: of the running episodes, for every
            name that was ever told.
    """

    def __init__(self, rules: InfoRules) -> None:
        self.rules = rules
        self.carry: dict[str, dict[str, dict[str, Tensor]]] = {}

    def load(self, carry: Mapping[str, Mapping[str, Mapping[str, Tensor]]], device: torch.device | str) -> None:
        """Go on from the `carry` of another; names that no rule keeps any more are dropped."""
        self.carry = {}
        for group, names in carry.items():
            kept = {name: parts for name, parts in names.items() if self.rules.wants(name)}
            self.carry[group] = {n: {k: v.to(device, copy=True) for k, v in parts.items()} for n, parts in kept.items()}

    def state_dict(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """`carry`, copied."""
        return {group: {name: {key: value.clone() for key, value in parts.items()} for name, parts in names.items()}
                for group, names in self.carry.items()}  # fmt: skip

    def names(self) -> list[tuple[str, str]]:
        """(group, name) of everything that was ever told."""
        return [(group, name) for group, names in self.carry.items() for name in sorted(names)]

    def share_names(self, info: InfoBuffers) -> None:
        """Count what any process was told among the names of all: their sums must be of the same figures."""
        if distributed.world() > 1:
            told = {(group, name) for group, kept in info.tensors.items() for name in kept} | {*self.names()}
            for group, name in sorted(distributed.agree(set().union(*distributed.gather(told)))):
                self.carry.setdefault(group, {}).setdefault(name, {})

    @torch.no_grad()
    def reduce(self, info: InfoBuffers, done: Tensor) -> dict[tuple[str, str], Tensor]:
        """{(group, "NAME/KIND"): float32 [T, E, A]}: at steps where `done`, of the whole episode; nan where not told.

        done: bool [T, E], of the first T steps of `info`.
        """
        reduced = {}
        for group, kept in info.tensors.items():
            names = sorted({*kept, *self.carry.get(group, {})})
            if names:
                carry = self.carry.setdefault(group, {})
                for name in names:
                    carry.setdefault(name, {})
                values = {name: info.value(group, name)[: len(done)] for name in names}
                reduced |= {(group, key): value for key, value in self._group(values, done, carry).items()}
        return reduced

    def _group(self, values: dict[str, Tensor], done: Tensor, carry: dict) -> dict[str, Tensor]:
        kinds = {name: self.rules.kinds(name) for name in values}
        found = {(name, "end"): value for name, value in values.items() if "end" in kinds[name]}
        if summed := [name for name in values if {"mean", "sum"} & {*kinds[name]}]:
            numbers = torch.stack([values[name] for name in summed], 2)
            told = numbers.isfinite()
            numbers, told = torch.where(told, numbers, 0.0), told.float()
            total, count = _scanned(running_totals, {"sum": numbers, "told": told}, done, carry, summed, 0.0)
            mean = total / count  # nan where nothing was told
            total = torch.where(count > 0, total, torch.nan)
            found |= {(name, "mean"): value for name, value in zip(summed, mean.unbind(2), strict=True)}
            found |= {(name, "sum"): value for name, value in zip(summed, total.unbind(2), strict=True)}
        for kind, sign in (("max", 1.0), ("min", -1.0)):
            if chosen := [name for name in values if kind in kinds[name]]:
                numbers = torch.stack([values[name] for name in chosen], 2) * sign
                numbers = torch.where(numbers.isfinite(), numbers, -torch.inf)
                (most,) = _scanned(running_maxima, {kind: numbers}, done, carry, chosen, -torch.inf)
                most = torch.where(most.isfinite(), most * sign, torch.nan)
                found |= {(name, kind): value for name, value in zip(chosen, most.unbind(2), strict=True)}
        return {f"{name}/{kind}": found[name, kind] for name in values for kind in kinds[name]}


def _scanned(
    scan: Callable, parts: dict[str, Tensor], done: Tensor, carry: dict, names: list[str], empty: float
) -> list[Tensor]:
    """Each part float32 [T, E, N, A] scanned over time; what runs on is put into `carry`."""
    columns = torch.cat(list(parts.values()), 2)
    nothing = torch.full_like(columns[0, :, 0], empty)
    before = [carry[name].get(part, nothing) for part in parts for name in names]
    scanned, after = scan(columns.flatten(2), done, torch.stack(before, 1).flatten(1))
    rest = iter(after.unflatten(1, columns.shape[2:]).unbind(1))
    for part in parts:
        for name in names:
            carry[name][part] = next(rest)
    return list(scanned.unflatten(2, columns.shape[2:]).chunk(len(parts), 2))


class FirstEpisodes:
    """The same for the first episode of every environment, step by step; its steps are reduced `CHUNK` at a time."""

    def __init__(self, env: Env, rules: InfoRules) -> None:
        n_agents = {name: group.n_agents for name, group in env.spec.groups.items()}
        self.buffers = InfoBuffers(rules, CHUNK, env.num_envs, n_agents, env.device) if rules else None
        self.infos, self.ended, self.found = EpisodeInfos(rules), [], {}

    def add(self, transition: Transition, running: Tensor) -> None:
        """What a step brought; running: bool [E], where the first episode had not ended before it."""
        if self.buffers is not None:
            self.buffers.write(len(self.ended), transition.info)
            self.ended.append(transition.done & running)
            if len(self.ended) == CHUNK:
                self._reduce()

    def _reduce(self) -> None:
        ended = torch.stack(self.ended)
        last = ended.unsqueeze(-1)
        for key, value in self.infos.reduce(self.buffers, ended).items():
            now = torch.where(last, value, 0.0).sum(0)  # of the one step at which it ended
            before = self.found.get(key, torch.full_like(now, torch.nan))
            self.found[key] = torch.where(last.any(0), now, before)
        self.ended = []

    def reduced(self) -> dict[str, dict[str, np.ndarray]]:
        """{group: {"NAME/KIND": float64 [E, A]}}, on the host; nan where nothing was told."""
        if self.ended:
            self._reduce()
        groups = {} if self.buffers is None else {group: {} for group in self.buffers.tensors}
        for (group, key), value in self.found.items():
            groups[group][key] = value.cpu().double().numpy()
        return groups


def ended_means(reduced: Mapping[tuple[str, str], Tensor], done: Tensor) -> dict[tuple[str, str], Tensor]:
    """Means of what `EpisodeInfos.reduce` gave, over the agents and the episodes that ended, of all processes.

    nan where none did, or none was told of. What one process alone was told is a figure of all.
    """
    if not reduced:
        return {}
    sums = []
    for group in dict.fromkeys(group for group, _ in reduced):
        values = torch.stack([value for (of, _), value in reduced.items() if of == group])  # [N, T, E, A]
        counted = values.isfinite() & done.unsqueeze(-1)
        total = torch.where(counted, values, 0.0).sum((1, 2, 3))
        sums.append(torch.stack([total, counted.sum((1, 2, 3)).float()]))
    total, count = distributed.total(torch.cat(sums, 1))
    return dict(zip(reduced, (total / count).unbind(), strict=True))


def figure(group: str, key: str, groups: Collection[str]) -> str:
    """The name of a figure in logs: "info/NAME/KIND", with its group before it where there are several."""
    return f"info/{key}" if len(groups) == 1 else f"{group}/info/{key}"
