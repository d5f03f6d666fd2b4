"""Recorded episodes as the inputs of an exported policy: for calibration, and to compare files with the policy.

Shapes: E episodes, B of them that still run, A agents in a group, F features, M numbers of memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from agents.policies.policy import Policy
from marl.core.errors import UserError
from marl.data.episodes import MANIFEST, shards


@dataclass(frozen=True, slots=True)
class Moment:
    """What the policy saw at one step of all episodes that were still running.

    rows: int64 [B], which of the episodes. observation: {group: float32 [B, A, F]}.
    masks: {group: {"action" or "alive": bool [B, A, …]}}, as `Policy.act` takes them.
    """

    rows: Tensor
    observation: dict[str, Tensor]
    masks: dict[str, dict[str, Tensor]]


def moments(policy: Policy, shard: Mapping[str, Tensor], episodes: int | None = None) -> Iterator[Moment]:
    """Step by step through the first `episodes` (None: all) of a shard (`marl.data.episodes`), from their beginnings.

    Raises:
        UserError: the shard is of other agents.
    """
    for name, group in policy.spec.groups.items():
        wanted, recorded = (group.n_agents, group.observation_size), shard.get(f"{name}/observation")
        if recorded is None or recorded.shape[1:] != wanted:
            shape = "none" if recorded is None else list(recorded.shape[1:])
            raise UserError(
                f"recorded episodes: observations of {name} are to be {list(wanted)} (agents, features), not {shape}"
            )
    length = shard["length"][:episodes]
    begin = length.cumsum(0) - length
    for t in range(int(length.max())):
        rows = (length > t).nonzero()[:, 0]
        at = begin[rows] + t
        masks: dict[str, dict[str, Tensor]] = {}
        for name in policy.spec.groups:
            for kind, key in (("action", f"{name}/action_mask"), ("alive", f"{name}/alive")):
                if key in shard:
                    masks.setdefault(name, {})[kind] = shard[key][at]
        yield Moment(rows, {name: shard[f"{name}/observation"][at] for name in policy.spec.groups}, masks)


def feed(policy: Policy, now: Moment, memory: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The inputs of a file of `policy` by name. memory: {group: float32 [E, A, M]} of all episodes."""
    inputs = {f"{name}_observation": observation for name, observation in now.observation.items()}
    inputs |= {f"{name}_memory": value[now.rows] for name, value in memory.items()}
    masks = {name: kinds["action"] for name, kinds in now.masks.items() if "action" in kinds}
    inputs |= {f"{name}_action_mask": mask for name, mask in masks.items()}
    return {name: value.contiguous().numpy() for name, value in inputs.items()}


def feeds(policy: Policy, shard: Mapping[str, Tensor], episodes: int = 32) -> list[dict[str, np.ndarray]]:
    """What a file of `policy` is fed along the first episodes of a shard, one feed per step; memories included.

    Raises:
        UserError: the shard is of other agents.
    """
    memory, inputs = policy.memory(len(shard["length"][:episodes])), []
    for now in moments(policy, shard, episodes):
        inputs.append(feed(policy, now, memory))
        after = policy.act(now.observation, masks=now.masks, memory={n: m[now.rows] for n, m in memory.items()})[1]
        for name, value in after.items():
            memory[name][now.rows] = value
    return inputs


def calibration(policy: Policy, folder: str | Path) -> list[dict[str, np.ndarray]]:
    """`feeds` of a data set that scripts/record.py wrote.

    Raises:
        UserError: there is none, it is damaged, or it is of other agents.
    """
    if not (Path(folder).expanduser() / MANIFEST).is_file():
        raise UserError(
            f"calibration={folder}: no recorded episodes there; python scripts/record.py ckpt=RUN_DIR out={folder} "
            "writes them"
        )
    return feeds(policy, next(shards(folder)))
