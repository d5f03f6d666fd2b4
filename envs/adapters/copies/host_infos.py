"""Figures among the infos of environments in plain Python: numbers by name, stacked for the agents of a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.infos import InfoRules

MASK = "action_mask"  # gymnasium's and PettingZoo's name: a key of a Dict observation, or of an agent's info
FINAL = ("final_obs", "final_observation")  # gymnasium's key in infos, and the one before gymnasium 1.0
FINAL_INFO = "final_info"  # gymnasium's key for the infos of an episode's last step, where the reset is in that step
NO_FIGURES = {MASK, FINAL_INFO, *FINAL}
LARGEST = 64  # numbers of an array that still is a figure; pictures and states are none
EVERYTHING = InfoRules((("*", ("end",)),))
Numbers = dict[str, np.ndarray]  # of one agent


def numbers(info: Mapping[str, Any], rules: InfoRules, prefix: str = "") -> Numbers:
    """{name: float32 [] or [n, …]} of what rules keep; nested mappings joined by dots.

    Numbers and bools of Python and numpy, and arrays of up to `LARGEST` of them; all else is no figure, nor is a mask
    of actions.
    """
    told = {}
    for key, value in info.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            told |= numbers(value, rules, f"{name}.")
        elif name != MASK and rules.wants(name) and (number := as_number(value)) is not None:
            told[name] = number
    return told


def as_number(value: Any) -> np.ndarray | None:
    """float32 [] or [n, …]; None where it is no number and no small array of them."""
    if not isinstance(value, bool | int | float | np.generic | np.ndarray):
        return None
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or not 0 < array.size <= LARGEST:
        return None
    return array.astype(np.float32)


def told_by(infos: Iterable[Mapping[str, Any]], agents: Iterable[str], rules: InfoRules) -> np.ndarray:
    """What each copy's agents told, object [n]: {agent: Numbers}, or None where nothing.

    infos: {agent: info} of each copy.
    """
    rows = np.empty(len(infos := list(infos)), dtype=object)
    for e, info in enumerate(infos) if rules else ():
        found = {agent: numbers(info[agent], rules) for agent in agents if info.get(agent)}
        rows[e] = {agent: told for agent, told in found.items() if told} or None
    return rows


def stacked(rows: np.ndarray, groups: Mapping[str, tuple[str, ...]]) -> dict[str, dict[str, Tensor]]:
    """`Transition.info` {group: {name: float32 [E, A, …]}} of what E copies told; nan where one did not.

    groups: the agents of each. An array of another shape than the first of its name in this step counts as not told.
    """
    places = {agent: (group, i) for group, agents in groups.items() for i, agent in enumerate(agents)}
    info: dict[str, dict[str, np.ndarray]] = {group: {} for group in groups}
    for e, row in enumerate(rows):
        for agent, told in (row or {}).items():
            group, i = places[agent]
            for name, value in told.items():
                kept = info[group].get(name)
                if kept is None:
                    shape = (len(rows), len(groups[group]), *value.shape)
                    kept = info[group][name] = np.full(shape, np.nan, dtype=np.float32)
                if kept.shape[2:] == value.shape:
                    kept[e, i] = value
    return {group: {name: torch.from_numpy(value) for name, value in named.items()} for group, named in info.items()}


def of_vector(infos: Mapping[str, Any], rules: InfoRules, told: np.ndarray, prefix: str = "") -> Numbers:
    """{name: float32 [E, …]} of what rules keep among a vector environment's infos, arrays beside a mask "_NAME".

    told: bool [E], of whom anything counts; nan for the others, and where a mask says so.
    """
    found: Numbers = {}
    for key, value in infos.items():
        name = f"{prefix}{key}"
        if name in NO_FIGURES or (str(key).startswith("_") and key[1:] in infos):
            continue
        has = told & np.asarray(infos.get(f"_{key}", told), dtype=bool)
        if isinstance(value, Mapping):
            found |= of_vector(value, rules, has, f"{name}.")
        elif isinstance(value, np.ndarray) and value.shape[:1] == told.shape and rules.wants(name):
            each = [as_number(one) for one in value] if value.dtype == object else None
            if each is not None:
                each = [np.float32(np.nan) if one is None or one.ndim else one for one in each]
                value = np.array(each, dtype=np.float32)
            if value.dtype.kind in "biuf" and 0 < value[0].size <= LARGEST:
                found[name] = np.where(has.reshape(-1, *[1] * (value.ndim - 1)), value.astype(np.float32), np.nan)
    return {name: value for name, value in found.items() if not np.isnan(value).all()}


def of_last_steps(final: Any, rules: InfoRules, over: np.ndarray) -> Numbers:
    """The same of "final_info": a mapping of such arrays, or, before gymnasium 1.0, an infos' mapping for each."""
    if final is None or isinstance(final, Mapping):
        return of_vector(final or {}, rules, over)
    rows = told_by([{"": one if has else {}} for one, has in zip(final, over, strict=True)], [""], rules)
    return {name: value[:, 0].numpy() for name, value in stacked(rows, {"": ("",)})[""].items()}


def joined_where(over: np.ndarray, last: Numbers, others: Numbers) -> Numbers:
    """Rows of `last` where `over`, bool [E], those of `others` elsewhere; nan where the one in question has none."""
    joined = {}
    for name in {**others, **last}:
        shape = (last[name] if name in last else others[name]).shape
        nothing = np.full(shape, np.nan, dtype=np.float32)
        rows = [named.get(name, nothing) for named in (last, others)]
        rows = [row if row.shape == shape else nothing for row in rows]
        joined[name] = np.where(over.reshape(-1, *[1] * (len(shape) - 1)), *rows).astype(np.float32)
    return joined
