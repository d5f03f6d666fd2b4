"""Infos reduced over the episodes that end, carried over from one rollout to the next.

Shapes: T time, E environments, A agents in a group, R rows (`agents.collection.ends`), N figures.
"""

from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from agents.collection.ends import Ends
from envs.base import Env, Transition
from envs.infos import InfoBuffers, InfoRules
from marl.core import distributed

CHUNK = 128  # steps of evaluations that are reduced together


class EpisodeInfos:
    """Reductions of a run's infos over its episodes, by `rules`. Numbers that are not finite are left out.

    Attributes:
        carry: {group: {name: {"sum" | "told" | "max" | "min" | "last": float32 [E, A]}}}: of the running episodes, for
            every name that was ever told; "last" of groups whose agents end each on its own.
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
    def reduce(
        self, info: InfoBuffers, ends: Ends, living: Mapping[str, Tensor] | None = None
    ) -> dict[tuple[str, str], Tensor]:
        """{(group, "NAME/KIND"): float32 [R, A]}: of the episodes that ended at `ends.rows`; nan where not told.

        ends: of the first T steps of `info`. living: {group: bool [T, E, A]} of groups whose agents end each on its
        own, who was alive before the step: what is told of the dead is left out, and "end" is an agent's own last step.
        """
        reduced = {}
        for group, kept in info.tensors.items():
            if names := sorted({*kept, *self.carry.get(group, {})}):
                carry = self.carry.setdefault(group, {})
                for name in names:
                    carry.setdefault(name, {})
                values = {name: info.value(group, name)[: len(ends.done)] for name in names}
                alive = (living or {}).get(group)
                if alive is not None:
                    values = {name: torch.where(alive, value, torch.nan) for name, value in values.items()}
                reduced |= {(group, key): value for key, value in self._group(values, ends, carry, alive).items()}
        return reduced

    def _group(self, values: dict[str, Tensor], ends: Ends, carry: dict, alive: Tensor | None) -> dict[str, Tensor]:
        kinds = {name: self.rules.kinds(name) for name in values}
        found = {}
        for name, value in values.items():
            if "end" in kinds[name]:
                if alive is None:
                    last = value.flatten(0, 1).index_select(0, ends.rows)
                else:
                    last = _last_living(value, alive, ends, carry[name])
                found[name, "end"] = torch.where(last.isfinite(), last, torch.nan)
        if summed := [name for name in values if {"mean", "sum"} & {*kinds[name]}]:
            numbers = torch.stack([values[name] for name in summed], 2)
            told = numbers.abs() < torch.inf  # neither nan nor infinite
            parts = {"sum": torch.where(told, numbers, 0.0), "told": told.float()}
            total, count = _scanned(ends.last_totals, parts, carry, summed, 0.0)
            for kind, value in (("mean", total / count), ("sum", torch.where(count > 0, total, torch.nan))):
                found |= {(name, kind): value[:, i] for i, name in enumerate(summed)}
        for kind, sign in (("max", 1.0), ("min", -1.0)):
            if chosen := [name for name in values if kind in kinds[name]]:
                numbers = torch.stack([values[name] for name in chosen], 2) * sign
                numbers = torch.where(numbers.isfinite(), numbers, -torch.inf)
                (most,) = _scanned(ends.last_maxima, {kind: numbers}, carry, chosen, -torch.inf)
                most = torch.where(most.isfinite(), most * sign, torch.nan)
                found |= {(name, kind): most[:, i] for i, name in enumerate(chosen)}
        return {f"{name}/{kind}": found[name, kind] for name in values for kind in kinds[name]}


def _scanned(scan: Callable, parts: dict[str, Tensor], carry: dict, names: list[str], empty: float) -> list[Tensor]:
    """Each part float32 [T, E, N, A] scanned over time, to [R, N, A]; what runs on is put into `carry`."""
    columns = torch.cat(list(parts.values()), 2)
    nothing = torch.full_like(columns[0, :, 0], empty)
    before = [carry[name].get(part, nothing) for part in parts for name in names]
    scanned, after = scan(columns.flatten(2), torch.stack(before, 1).flatten(1))
    rest = iter(after.unflatten(1, columns.shape[2:]).unbind(1))
    for part in parts:
        for name in names:
            carry[name][part] = next(rest)
    return list(scanned.unflatten(1, columns.shape[2:]).chunk(len(parts), 1))


def _last_living(value: Tensor, alive: Tensor, ends: Ends, carry: dict[str, Tensor]) -> Tensor:
    """The value of each agent's last living step of the episodes that ended, [R, A]; nan where it had none.

    value, alive: [T, E, A]. carry: its "last" is that of the episodes that run on.
    """
    T, E = ends.done.shape
    time = torch.arange(T, device=value.device).view(-1, 1, 1)
    step = torch.where(alive, time, -1).cummax(0).values  # [T, E, A]: the latest living one
    end = torch.where(ends.done.unsqueeze(-1), time, -1).cummax(0).values  # [T, E, 1]: the latest end
    before = torch.cat([torch.full_like(end[:1], -1), end[:-1]])
    earlier = carry.get("last", torch.full_like(value[0], torch.nan))

    def looked_up(steps: Tensor, ends_before: Tensor, environment: Tensor) -> Tensor:
        """Of the episodes that began after `ends_before`: [R, A], [R, 1], [R]."""
        here = value[steps.clamp(min=0), environment.unsqueeze(-1), torch.arange(value.shape[-1], device=value.device)]
        none = torch.where(ends_before < 0, earlier.index_select(0, environment), torch.nan)
        return torch.where(steps > ends_before, here, none)

    everywhere = torch.arange(E, device=value.device)
    last = looked_up(step.flatten(0, 1)[ends.rows], before.flatten(0, 1)[ends.rows], ends.rows % E)
    carry["last"] = looked_up(step[-1], end[-1], everywhere)
    return last


class FirstEpisodes:
    """The same for the first episode of every environment, step by step; its steps are reduced `CHUNK` at a time."""

    def __init__(self, env: Env, rules: InfoRules) -> None:
        n_agents = {name: group.n_agents for name, group in env.spec.groups.items()}
        self.buffers = InfoBuffers(rules, CHUNK, env.num_envs, n_agents, env.device) if rules else None
        self.infos, self.ended, self.found = EpisodeInfos(rules), [], {}
        self.lone = [name for name, group in env.spec.groups.items() if group.ends]
        self.alive: dict[str, list[Tensor]] = {name: [] for name in self.lone}

    def before_step(self, masks: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Who is alive before a step; masks: as `Env.masks` returns them."""
        for name in self.lone:
            self.alive[name].append(masks[name]["alive"].clone())

    def add(self, transition: Transition, running: Tensor) -> None:
        """What a step brought; running: bool [E], where the first episode had not ended before it."""
        if self.buffers is not None:
            self.buffers.write(len(self.ended), transition.info)
            self.ended.append(transition.done & running)
            if len(self.ended) == CHUNK:
                self._reduce()

    def _reduce(self) -> None:
        ends = Ends(torch.stack(self.ended), find=True)
        environment = ends.rows % ends.done.shape[1]
        living = {name: torch.stack(alive) for name, alive in self.alive.items()}
        for key, value in self.infos.reduce(self.buffers, ends, living).items():
            if key not in self.found:
                self.found[key] = value.new_full((ends.done.shape[1], value.shape[1]), torch.nan)
            self.found[key].index_copy_(0, environment, value)
        self.ended, self.alive = [], {name: [] for name in self.lone}

    def reduced(self) -> dict[str, dict[str, np.ndarray]]:
        """{group: {"NAME/KIND": float64 [E, A]}}, on the host; nan where nothing was told."""
        if self.ended:
            self._reduce()
        groups = {} if self.buffers is None else {group: {} for group in self.buffers.tensors}
        for (group, key), value in self.found.items():
            groups[group][key] = value.cpu().double().numpy()
        return groups


def ended_means(reduced: Mapping[tuple[str, str], Tensor], ends: Ends) -> dict[tuple[str, str], Tensor]:
    """Means of what `EpisodeInfos.reduce` gave, over the agents and the episodes that ended, of all processes.

    nan where none did, or none was told of. What one process alone was told is a figure of all.
    """
    if not reduced:
        return {}
    sums = []
    for group in dict.fromkeys(group for group, _ in reduced):
        values = torch.stack([value for (of, _), value in reduced.items() if of == group])  # [N, R, A]
        counted = ~values.isnan() & ends.ended.unsqueeze(-1)
        total = torch.where(counted, values, 0.0).sum((1, 2))
        sums.append(torch.stack([total, counted.sum((1, 2), dtype=torch.float32)]))
    total, count = distributed.total(torch.cat(sums, 1))
    return dict(zip(reduced, (total / count).unbind(), strict=True))


def figure(group: str, key: str, groups: Collection[str]) -> str:
    """The name of a figure in logs: "info/NAME/KIND", with its group before it where there are several."""
    return f"info/{key}" if len(groups) == 1 else f"{group}/info/{key}"
