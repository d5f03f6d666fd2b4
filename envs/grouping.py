"""Groups of agents: who belongs together, how their observations are stacked and their actions handed out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from envs.base import EnvError, whole
from envs.spec import ActionSpec, GroupSpec, ObservationPart

Parts = tuple[ObservationPart, ...]


def flatten(value: Tensor | dict[str, Any]) -> Tensor:
    """An agent's observation as float32 [E, F]; a dict's entries are joined in sorted order of the keys."""
    if isinstance(value, dict):
        return torch.cat([flatten(value[key]) for key in sorted(value)], dim=-1)
    return value.flatten(1).to(torch.float32)


def flatten_info(info: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """An agent's info as {name: tensor}, nested dicts joined by dots; what is no tensor is left out."""
    flat: dict[str, Tensor] = {}
    for key, value in info.items():
        if isinstance(value, dict):
            flat.update(flatten_info(value, f"{prefix}{key}."))
        elif isinstance(value, Tensor):
            flat[prefix + str(key)] = value
    return flat


def prefix_of(name: str) -> str:
    """ "agent_blue_0" -> "agent_blue", "agent 0" -> "agent", "agent" -> "agent"."""
    return re.sub(r"[_ ]*\d+$", "", name) or "agent"


def agent_actions(simulator: Any, agent: Any) -> ActionSpec:
    """What one agent of a VMAS simulator may do, as an ActionSpec with A = 1; communication actions come last."""
    talks = simulator.world.dim_c if not agent.silent else 0
    if simulator.continuous_actions:
        reach = agent.action.u_range_tensor.float()
        if talks and simulator.words == "discrete":
            if not len(reach):  # it stands still, and only talks
                return ActionSpec("discrete", nvec=(talks,))
            return ActionSpec("hybrid", -reach[None], reach[None], (talks,))
        low = torch.cat([-reach, torch.zeros(talks, device=reach.device)])
        high = torch.cat([reach, torch.ones(talks, device=reach.device)])
        return ActionSpec("continuous", low[None], high[None])
    nvec = (*agent.discrete_action_nvec, *([talks] if talks else []))
    if simulator.multidiscrete_actions:
        return ActionSpec("multi_discrete", nvec=tuple(nvec))
    return ActionSpec("discrete", nvec=(int(torch.tensor(nvec).prod()),))


def _padded(bound: Tensor | None, width: int, value: float) -> Tensor:
    """One bound of an agent's continuous numbers, [1, C], filled up to `width`."""
    assert bound is not None  # agents of a group act in one way
    return pad(bound, (0, width - bound.shape[-1]), value=value)


def _space(observation_size: int, parts: Parts, action: ActionSpec) -> tuple:
    bounds = tuple(x for bound in (action.low, action.high) if bound is not None for x in bound.flatten().tolist())
    return observation_size, parts, action.kind, action.nvec, bounds


def assign(
    agents: list[Any],
    sizes: list[int],
    actions: list[ActionSpec],
    heterogeneous: str,
    teams: dict[str, list[str]] | None = None,
    parts: Sequence[Parts] | None = None,
) -> dict[str, list[int]]:
    """{group name: indices of its agents}, ordered by first agent; a single group is called "agents".

    teams: {group: agent names or name prefixes}; None for one group per prefix ("agent_blue_0" is of "agent_blue").
    heterogeneous: where agents of a group differ in sizes, parts or ranges, "split" divides it into name_0, name_1, …;
    "pad" keeps it whole. Raises EnvError where `teams` names no agent or leaves one out.
    """
    if heterogeneous not in ("split", "pad"):
        raise EnvError(f"env.heterogeneous={heterogeneous!r} must be 'split' or 'pad'.")
    names = [agent.name for agent in agents]
    whole: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        mine = [
            g
            for g, members in (teams or {prefix_of(name): [name]}).items()
            if name in members or prefix_of(name) in members
        ]
        if len(mine) != 1:
            raise EnvError(
                f"env.groups={teams} must put every agent into exactly one group, but {name!r} is in "
                f"{mine or 'none'}; the agents are {', '.join(names)}."
            )
        whole.setdefault(mine[0], []).append(i)
    for group, patterns in (teams or {}).items():
        if group not in whole:
            raise EnvError(f"env.groups.{group}={patterns} matches none of the agents {', '.join(names)}.")
    groups: dict[str, list[int]] = {}
    for group, members in whole.items():
        kinds = {actions[i].kind: names[i] for i in members}
        if heterogeneous == "pad" and len(kinds) > 1:
            mixed = " and ".join(f"{kind} of {name}" for kind, name in kinds.items())
            raise EnvError(
                f"env.heterogeneous=pad: the actions of group {group!r} are of unlike kinds ({mixed}), and "
                "padding makes sizes equal only; 'split' gives each kind a group of its own."
            )
        same_space: dict[tuple, list[int]] = {}
        for i in members:
            mine = _space(sizes[i], parts[i] if parts else (), actions[i])
            same_space.setdefault(mine if heterogeneous == "split" else (), []).append(i)
        for k, part in enumerate(same_space.values()):
            groups[group if len(same_space) == 1 else f"{group}_{k}"] = part
    return {"agents": next(iter(groups.values()))} if len(groups) == 1 and not teams else groups


class Group:
    """One group: its spec, which of the simulator's agents it holds, and the stacking of what they see and get."""

    def __init__(
        self,
        name: str,
        members: list[int],
        agents: list[Any],
        sizes: list[int],
        actions: list[ActionSpec],
        infos: list[dict[str, Tensor]],
        parts: Sequence[Parts] | None = None,
    ) -> None:
        self.members = members
        self.sizes = [sizes[i] for i in members]
        self.nvecs = [actions[i].nvec for i in members]
        self.reals = [actions[i].n_continuous for i in members]  # continuous numbers, which come first
        C, K, size = max(self.reals), max(len(nvec) for nvec in self.nvecs), max(self.sizes)
        self.same_size = len(set(self.sizes)) == 1
        mask = torch.tensor(
            [
                [d < c for d in range(C)] + [d < len(n) for d in range(K)]
                for c, n in zip(self.reals, self.nvecs, strict=True)
            ]
        )
        low = high = None
        first = actions[members[0]]
        if first.low is not None:  # padded dimensions get an ordinary range: a policy divides by it
            low = torch.cat([_padded(actions[i].low, C, -1.0) for i in members])
            high = torch.cat([_padded(actions[i].high, C, 1.0) for i in members])
            mask = mask.to(low.device)
        nvec = tuple(max(n[d] for n in self.nvecs if d < len(n)) for d in range(K))
        self._choices: dict[int, Tensor] = {}
        self.wrap = any(n != nvec[: len(n)] for n in self.nvecs)
        action = ActionSpec(first.kind, low, high, nvec, None if bool(mask.all()) else mask)
        theirs = {parts[i] for i in members} if parts else set()
        same = theirs.pop() if len(theirs) == 1 else ()  # of agents that see unlike things, features have no names
        self.spec = GroupSpec(name, tuple(agents[i].name for i in members), size, action, parts=same)
        common = [
            key
            for key in infos[members[0]]
            if all(_same_shape(infos[members[0]][key], infos[i].get(key)) for i in members)
        ]
        self.info_names = common

    def observation(self, observations: list[Any]) -> Tensor:
        """float32 [E, A, F] from all agents' observations, zero-padded to the widest."""
        parts = [flatten(observations[i]) for i in self.members]
        if not self.same_size:
            parts = [pad(p, (0, max(self.sizes) - p.shape[-1])) for p in parts]
        return torch.stack(parts, dim=1)

    def mask(self, masks: list[Tensor]) -> Tensor:
        """bool [E, A, sum(nvec)] from all agents' masks [E, choices]; choices that only others have are forbidden."""
        nvec, rows = self.spec.action.nvec, []
        for agent, agent_nvec in zip(self.members, self.nvecs, strict=True):
            if agent_nvec == nvec:
                rows.append(masks[agent])
                continue
            parts = []
            for part, n in zip(masks[agent].split(agent_nvec, -1), nvec, strict=False):
                parts += [part, part.new_zeros(len(part), n - part.shape[-1])]
            more = sum(nvec[len(agent_nvec) :])  # of dimensions that the agent lacks
            rows.append(torch.cat([*parts, part.new_ones(len(part), more)], -1))
        return torch.stack(rows, dim=1)

    def reward(self, rewards: list[Tensor]) -> Tensor:
        """float32 [E, A] from all agents' rewards [E] or [E, 1]."""
        return torch.stack([rewards[i].flatten() for i in self.members], dim=1).to(torch.float32)

    def info(self, infos: list[dict[str, Any]]) -> dict[str, Tensor]:
        """{name: [E, A, …]} of the infos that every member of the group reports in the same shape."""
        flat = [flatten_info(infos[i]) for i in self.members]
        return {name: torch.stack([f[name] for f in flat], dim=1) for name in self.info_names}

    def split_actions(self, action: Tensor, to: list[Any]) -> None:
        """Write each member's action [E, D of that agent] into the list for the simulator.

        Continuous actions are clamped to the range. Discrete choices beyond what a narrower, padded agent has wrap
        around (modulo), so that uniform choices stay nearly uniform. Raises ActionError for fractions of choices.
        """
        if self.spec.action.low is None and action.dtype != torch.int64:
            action = whole(self.spec.name, action)
        action, C = self.spec.action.clamped(action), self.spec.action.n_continuous
        for row, (agent, reals, nvec) in enumerate(zip(self.members, self.reals, self.nvecs, strict=True)):
            parts = [action[:, row, :reals]] if reals else []
            if nvec:
                parts.append(action[:, row, C : C + len(nvec)])
                if self.wrap:
                    if agent not in self._choices:  # on the actions' device, once
                        self._choices[agent] = torch.tensor(nvec, device=action.device)
                    parts[-1] = parts[-1] % self._choices[agent]
            to[agent] = parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _same_shape(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and a.dim() > 0
