"""Actions and their masks as rows of numbers, between what a policy gives and what gymnasium's spaces hold."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from envs.adapters.copies.host_infos import MASK
from envs.base import EnvError


def mask_row(mask: Any, action: gymnasium.Space, whose: str) -> np.ndarray:
    """A mask of actions, or one per part of a Tuple or Dict, as one row: bool [choices]. Raises EnvError for others."""
    row = _flat_mask(mask, action)
    if len(row) != choices(action):
        raise EnvError(f"{whose} has {len(row)} entries, but its actions {action} have {choices(action)} choices.")
    return row.astype(bool)


def _flat_mask(mask: Any, action: gymnasium.Space) -> np.ndarray:
    """The masks of a space's parts one after the other; as gymnasium has it, None masks nothing, and a Box always."""
    if mask is None:
        return np.ones(choices(action), dtype=bool)
    if isinstance(mask, dict) and isinstance(action, spaces.Dict):
        return np.concatenate([_flat_mask(mask.get(key), action.spaces[key]) for key in sorted(action.spaces)])
    if isinstance(mask, tuple) and isinstance(action, spaces.Tuple) and len(mask) == len(action.spaces):
        return np.concatenate([_flat_mask(part, space) for part, space in zip(mask, action.spaces, strict=True)])
    return np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, tuple) else np.ravel(mask)


def parted(space: gymnasium.Space, action: gymnasium.Space) -> tuple[gymnasium.Space, bool]:
    """The space of what an agent sees, and whether a mask of its actions lies beside that."""
    if isinstance(space, spaces.Dict) and MASK in space.spaces and takes_masks(action):
        return spaces.Dict({key: part for key, part in space.spaces.items() if key != MASK}), True
    return space, False


def takes_masks(space: gymnasium.Space) -> bool:
    """Whether a mask says of each choice if it is allowed; for MultiBinary gymnasium means something else by it."""
    discrete = [part for part in action_parts(space) if not isinstance(part, spaces.Box)]
    return bool(discrete) and all(isinstance(part, spaces.Discrete | spaces.MultiDiscrete) for part in discrete)


def action_parts(space: gymnasium.Space) -> list[gymnasium.Space]:
    """What a Tuple or a Dict (its keys sorted) joins, those within them taken apart too; any other space alone."""
    if isinstance(space, spaces.Tuple):
        return [part for inner in space.spaces for part in action_parts(inner)]
    if isinstance(space, spaces.Dict):
        return [part for key in sorted(space.spaces) for part in action_parts(space.spaces[key])]
    return [space]


def choices(space: gymnasium.Space) -> int:
    """How many choices the space offers, its dimensions added up; a Box none."""
    if isinstance(space, spaces.Tuple | spaces.Dict):
        return sum(choices(part) for part in action_parts(space))
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return 2 * int(np.prod(space.shape)) if isinstance(space, spaces.MultiBinary) else 0


def action_width(space: gymnasium.Space) -> int:
    """Numbers that one action of the space holds."""
    if isinstance(space, spaces.Tuple | spaces.Dict):
        return sum(action_width(part) for part in action_parts(space))
    return 1 if isinstance(space, spaces.Discrete) else int(np.prod(space.shape))


def in_space(action: np.ndarray, space: gymnasium.Space) -> Any:
    """Numbers [..., D] of an agent in the form that its space holds, the leading dimensions kept.

    Of a Tuple or a Dict the Boxes' numbers come first, then the choices, both in the order of `action_parts`.
    """
    if isinstance(space, spaces.Tuple | spaces.Dict):
        at = [0, sum(action_width(part) for part in action_parts(space) if isinstance(part, spaces.Box))]
        return _joint(action, space, at)
    if isinstance(space, spaces.Discrete):
        return (space.start + action[..., 0]).astype(space.dtype)
    offset = space.start if isinstance(space, spaces.MultiDiscrete) else 0
    return (action.reshape(*action.shape[:-1], *space.shape) + offset).astype(space.dtype)


def _joint(action: np.ndarray, space: gymnasium.Space, at: list[int]) -> Any:
    """As `in_space`; at: where the next continuous number and the next choice lie, moved on."""
    if isinstance(space, spaces.Tuple):
        return tuple(_joint(action, part, at) for part in space.spaces)
    if isinstance(space, spaces.Dict):
        return {key: _joint(action, space.spaces[key], at) for key in sorted(space.spaces)}
    which = 0 if isinstance(space, spaces.Box) else 1
    start, at[which] = at[which], at[which] + action_width(space)
    return in_space(action[..., start : at[which]], space)
