"""Transfer between tasks that differ: whose weights a group begins with, and which feature it sees as which.

Shapes: F features of an observation, A agents of a group, H outputs of a network's first layer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from marl.core.errors import UserError, closest
from marl.core.schema import check_value, show

KEYS = ("from", "features", "rest")
NORM = ("mean", "m2", "scale", "shift")  # of `inputs.norm`, feature by feature


@dataclass(frozen=True)
class Side:
    """A group as it was, or is: F, A, and {name: its features} of named parts of the observation."""

    features: int
    n_agents: int | None = None
    parts: dict[str, range] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupMap:
    """Where a group's weights come from: `source`, a group of the file, each feature of `columns` {new: old}.

    columns is None where observations are the same. rest: what other features of the first layer begin with.
    """

    group: str
    source: str
    new: Side
    old: Side
    columns: dict[int, int] | None = None
    rest: Literal["zero", "initial"] = "zero"

    def told(self) -> str:
        """One sentence on features that were mapped."""
        columns = self.columns or {}
        news = sorted(set(range(self.new.features)) - set(columns))
        unused = sorted(set(range(self.old.features)) - set(columns.values()))
        pairs = ", ".join(f"{new} from {old}" for new, old in _runs(columns))
        begin = {"zero": "begin at zero", "initial": "keep their initial weights"}[self.rest]
        text = f"{self.group}: its features {pairs} of {self.source}"
        text += f"; {spans(news)} {begin}" if news else ""
        return text + (f"; {spans(unused)} of {self.source} not taken" if unused else "")


def side(group: Any) -> Side:
    """Of a spec's group: an `envs.spec.GroupSpec`, or its description as a dictionary."""
    if isinstance(group, Mapping):
        parts = [(part["name"], part["shape"]) for part in group.get("parts", ())]
        size, agents = group["observation_size"], len(group["agents"])
    else:
        parts = [(part.name, part.shape) for part in group.parts]
        size, agents = group.observation_size, group.n_agents
    named, start = {}, 0
    for name, shape in parts:
        width = int(torch.Size(shape).numel())
        named[name] = range(start, start + width)
        start += width
    return Side(size, agents, named)


def read(node: Mapping[str, Any], new: Mapping[str, Side], old: Mapping[str, Side]) -> list[GroupMap]:
    """The maps that `init_map={agents: {from: adversary, features: {0-3: 2-5}}}` stands for.

    new, old: {group: how it is} of the task and of the file.

    Raises:
        UserError: groups, parts or features that are not there, or pairs of unlike widths.
    """
    maps = []
    for group, entry in node.items():
        key = f"init_map.{group}"
        entry = {"from": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping) or not isinstance(entry.get("from"), str):
            raise UserError(f"{key}={show(entry)}: must be a group of the saved run, or {{from: GROUP, features: …}}")
        for name in entry:
            if name not in KEYS:
                raise UserError(f"unknown key '{key}.{name}'{closest(name, KEYS)} (allowed are {', '.join(KEYS)})")
        source, rest = entry["from"], cast(Literal["zero", "initial"], entry.get("rest", "zero"))
        if group not in new:
            raise UserError(f"{key}: no group learns under that name{closest(group, new)} (there are {', '.join(new)})")
        if source not in old:
            hint = f"{closest(source, old)} (it has {', '.join(old)})"
            raise UserError(f"{key}.from={source}: the saved run has no such group{hint}")
        check_value(Literal["zero", "initial"], rest, f"{key}.rest")
        columns = _columns(entry.get("features"), f"{key}.features", new[group], old[source])
        maps.append(GroupMap(group, source, new[group], old[source], columns, rest))
    return maps


def _columns(node: Any, key: str, new: Side, old: Side) -> dict[int, int] | None:
    if node is None:
        return None
    if not isinstance(node, Mapping) or not node:
        raise UserError(f"{key}={show(node)}: must be a mapping such as {{0-3: 2-5, goal: goal}}")
    columns: dict[int, int] = {}
    for left, right in node.items():
        to, come = _range(left, key, new, "the task's"), _range(right, f"{key}.{left}", old, "the saved")
        if len(to) != len(come):
            raise UserError(f"{key}.{left}={right}: {len(to)} features cannot be {len(come)}")
        if twice := set(to) & set(columns):
            raise UserError(f"{key}.{left}={right}: feature {min(twice)} is there twice")
        columns |= dict(zip(to, come, strict=True))
    return columns


def _range(text: Any, key: str, group: Side, whose: str) -> range:
    """A part's name, a feature's number, or first-last, both included."""
    text = str(text)
    if text in group.parts:
        return group.parts[text]
    numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if numbers is None:
        names = ", ".join(group.parts) or "no names"
        raise UserError(f"{key}: {text!r} must be first-last or a part of {whose} observation, which has {names}")
    first, last = int(numbers[1]), int(numbers[2] or numbers[1])
    if not first <= last < group.features:
        raise UserError(f"{key}: {text} must lie within 0-{group.features - 1}, {whose} features")
    return range(first, last + 1)


def mapped(saved: Mapping[str, Tensor], weights: Mapping[str, Tensor], maps: list[GroupMap]) -> dict[str, Tensor]:
    """The file's weights under the task's names, with first layers and statistics as the task's features lie.

    weights: of the task, as initialised. A first layer that sees features in another way (a critic of the global state)
    is left out where features are mapped.
    """
    result: dict[str, Tensor] = {}
    for one in maps:
        for name, value in saved.items():
            kind, _, rest = name.partition(".")
            if kind in ("actors", "critics") and rest.startswith(f"{one.source}."):
                result[f"{kind}.{one.group}{rest.removeprefix(one.source)}"] = value
        if one.columns is not None:
            if any(f".{one.group}." in name and ".encoders." in name for name in weights):
                raise UserError(
                    f"init_map.{one.group}.features: network=multi reads the parts by encoders, not by one first "
                    "layer; leave features out"
                )
            for kind in ("actors", "critics"):
                _move(result, weights, one, f"{kind}.{one.group}.")
    return result


def _move(result: dict[str, Tensor], weights: Mapping[str, Tensor], one: GroupMap, prefix: str) -> None:
    """Put the features of one actor or critic in their places."""
    for what in NORM:
        name = f"{prefix}inputs.norm.{what}"
        if name in result and name in weights:
            start = weights[name].clone()
            if what == "m2":  # of variance 1
                start.fill_(float(result[f"{prefix}inputs.norm.count"]))
            result[name] = _filled(start, result[name], one.columns or {})
    networks = {re.sub(r"^(.*?network\.(?:networks\.\d+\.)?).*$", r"\1", n) for n in weights if n.startswith(prefix)}
    for network in networks:
        inside = [name for name in weights if name.startswith(network) and weights[name].dim() == 2]
        body = [name for name in inside if "head" not in name.removeprefix(network).split(".")] or inside
        if "network." not in network or not body:
            continue
        source = next((name for name in (body[0], re.sub(r"\.networks\.\d+\.", ".networks.0.", body[0]))
                       if name in result), None)  # fmt: skip
        if source is not None:
            columns = _inputs(one, weights[body[0]].shape[1], result[source].shape[1])
            old = result.pop(source) if columns is None else result[source]
            if columns is not None:
                start = torch.zeros_like(weights[body[0]]) if one.rest == "zero" else weights[body[0]].clone()
                if len(start) == len(old):
                    result[body[0]] = _filled(start, old, columns)


def _inputs(one: GroupMap, new: int, old: int) -> dict[int, int] | None:
    """{column of the first layer: the file's} of networks that see one agent, with its id or not, or all of them."""
    F_new, F_old = one.new.features, one.old.features
    A_new, A_old = one.new.n_agents or 0, one.old.n_agents or 0  # 0: not known, and no layer's width but F
    columns = one.columns or {}
    if new - F_new in (0, A_new) and old - F_old in (0, A_old):
        ids = range(A_new) if A_new == A_old and new > F_new and old > F_old else ()
        return columns | {F_new + i: F_old + i for i in ids}
    if A_new == A_old and new == A_new * F_new and old == A_new * F_old:
        return {i * F_new + to: i * F_old + come for i in range(A_new) for to, come in columns.items()}
    return None


def _filled(start: Tensor, old: Tensor, columns: Mapping[int, int]) -> Tensor:
    """`start` [..., F] with the columns {its: the old one's} of `old`."""
    start[..., list(columns)] = old[..., list(columns.values())].to(start)
    return start


def spans(numbers: list[int]) -> str:
    """Sorted numbers in words: [0, 1, 2, 5] as "0-2, 5"."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(f"{g[0]}-{g[-1]}" if len(g) > 1 else str(g[0]) for g in groups)


def _runs(columns: Mapping[int, int]) -> list[tuple[str, str]]:
    """Pairs of spans, ("0-3", "2-5"), of which both sides go on by ones."""
    runs: list[list[tuple[int, int]]] = []
    for new, old in sorted(columns.items()):
        if runs and runs[-1][-1] == (new - 1, old - 1):
            runs[-1].append((new, old))
        else:
            runs.append([(new, old)])
    return [(spans([new for new, _ in run]), spans([old for _, old in run])) for run in runs]
