"""State that a scenario keeps outside tensors: NumPy arrays and lists with an entry per environment, generators, sets.

Per environment it is carried through auto-resets as tensors are. The rest travels in snapshots only.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.base import EnvError
from envs.vmas.simulator_state import Slot, StateMap, batch_axis, counts_environments

ADVICE = "keep it in a tensor [num_envs, …]"


class CarriedRows:
    """The arrays and lists of a simulator that hold a row per environment, found by comparing two numbers of them.

    main, fresh: the state of the simulator with E environments and of the reset pool's with P.
    Raises EnvError, naming the attribute, for state per environment that cannot be carried.
    """

    def __init__(self, main: StateMap, fresh: StateMap, num_envs: int, pool_size: int) -> None:
        self.num_envs, self.pool_size = num_envs, pool_size
        self.arrays: dict[str, int] = {}  # path -> axis of the environments
        self.lists: list[str] = []
        for path, slot in main.arrays.items():
            other = fresh.arrays.get(path)
            if other is None or slot.value.shape == other.value.shape:
                continue
            try:
                axis = batch_axis(slot.value.shape, other.value.shape, num_envs, pool_size)
            except ValueError as error:
                raise EnvError(
                    f"the scenario's array {path} cannot be reset per environment: {error}; {ADVICE}."
                ) from error
            if axis is not None and not _counts(other.value, axis):
                self.arrays[path] = axis
        for path, value in main.containers().items():
            other = fresh.containers().get(path)
            if other is None or (len(value), len(other)) != (num_envs, pool_size):
                continue
            if isinstance(value, dict) and set(value) != set(range(num_envs)):
                continue
            if not all(_is_row(item) for item in (value.values() if isinstance(value, dict) else value)):
                raise EnvError(
                    f"the scenario's {type(value).__name__} {path} holds something per environment that "
                    f"cannot be reset; {ADVICE}."
                )
            numbers = isinstance(other, list) and all(type(item) is int for item in other)
            if not numbers or other != list(range(pool_size)):  # those would be the environments' own numbers
                self.lists.append(path)

    def __bool__(self) -> bool:
        return bool(self.arrays or self.lists)

    @property
    def names(self) -> list[str]:
        """Paths of all that is carried."""
        return [*self.arrays, *self.lists]

    def merge(self, main: StateMap, fresh: StateMap, done: Tensor, offset: int) -> None:
        """Replaces the rows of environments that are done by the pool's rows (arange(E) + offset) % P."""
        over = done.cpu().numpy()
        if not over.any():
            return
        rows = (np.arange(self.num_envs) + offset) % self.pool_size
        for path, axis in self.arrays.items():
            array, other = main.arrays[path].value, fresh.arrays[path].value
            mask = over.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
            array[...] = np.where(mask, np.take(other, rows, axis), array)
        main_lists, fresh_lists = main.containers(), fresh.containers()
        for path in self.lists:
            value, other = main_lists[path], fresh_lists[path]
            for e in np.flatnonzero(over).tolist():
                value[e] = copy.deepcopy(other[int(rows[e])])


def _counts(array: np.ndarray, axis: int) -> bool:
    return array.dtype.kind in "iu" and counts_environments(torch.from_numpy(array.astype(np.int64)), axis)


def _is_row(item: Any) -> bool:
    """Whether a list's item can be copied from one environment to another: numbers, texts, tensors, lists of them."""
    if isinstance(item, (list, tuple)):
        return all(_is_row(part) for part in item)
    return item is None or isinstance(item, (bool, int, float, str, Tensor, np.generic, np.ndarray))


def pack(slot: Slot) -> Any:
    """What `slot` holds as JSON can carry it, for values that are neither tensors nor plain; None for any other."""
    value = slot.value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {"array": [str(value.dtype), list(value.shape), value.tobytes().hex()]}
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        version, words, gauss = value.getstate()
        return {"random": [version, list(words), gauss]}
    if isinstance(value, np.random.Generator):
        return {"generator": _plain(value.bit_generator.state)}
    if isinstance(value, np.random.RandomState):
        return {"random_state": _plain(value.get_state(legacy=False))}
    if isinstance(value, torch.Generator):
        return {"torch_generator": value.get_state().tolist()}
    if isinstance(value, (set, frozenset, deque)) and all(_is_plain(item) for item in value):
        items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else list(value)
        return {type(value).__name__: [items, getattr(value, "maxlen", None)]}
    if isinstance(value, itertools.count):
        return {"count": list(value.__reduce__()[1])}
    if isinstance(value, (Counter, OrderedDict, defaultdict)) and all(
        _is_plain(part) for item in value.items() for part in item
    ):
        return {"mapping": [list(item) for item in value.items()]}
    if isinstance(value, tuple) and hasattr(type(value), "_fields") and all(_is_plain(item) for item in value):
        return {"named": list(value)}
    return None


def unpack(slot: Slot, packed: dict[str, Any]) -> None:
    """Puts back what `pack` returned, into the object itself where it can be changed in place."""
    ((kind, content),) = packed.items()
    value = slot.value
    if kind == "array":
        dtype, shape, text = content
        array = np.frombuffer(bytes.fromhex(text), dtype).reshape(shape)
        if (
            isinstance(value, np.ndarray)
            and (value.shape, str(value.dtype)) == (tuple(shape), dtype)
            and value.flags.writeable
        ):
            value[...] = array
        else:
            slot.write(array.copy())
    elif kind == "random":
        value.setstate((content[0], tuple(content[1]), content[2]))
    elif kind == "generator":
        value.bit_generator.state = _arrays(content)
    elif kind == "random_state":
        value.set_state(_arrays(content))
    elif kind == "torch_generator":
        value.set_state(torch.tensor(content, dtype=torch.uint8))
    elif kind == "mapping":
        value.clear()
        value.update((_tuples(key), item) for key, item in content)
    elif kind == "named":
        slot.write(type(value)._make(map(_tuples, content)))
    elif kind == "count":
        slot.write(itertools.count(*content))
    else:
        items, most = content
        items = [_tuples(item) for item in items]
        slot.write(deque(items, most) if kind == "deque" else set(items) if kind == "set" else frozenset(items))


def _tuples(item: Any) -> Any:
    return tuple(map(_tuples, item)) if isinstance(item, list) else item


def _is_plain(item: Any) -> bool:
    return (
        item is None
        or type(item) in (bool, int, float, str)
        or (isinstance(item, tuple) and all(_is_plain(part) for part in item))
    )


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return {"words": [str(state.dtype), state.tolist()]}
    return state.item() if isinstance(state, np.generic) else state


def _arrays(state: Any) -> Any:
    if isinstance(state, dict):
        if set(state) == {"words"}:
            return np.array(state["words"][1], dtype=state["words"][0])
        return {key: _arrays(value) for key, value in state.items()}
    return state
