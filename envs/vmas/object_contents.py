"""What lies inside a simulator's objects: which of them hold state, and their attributes or items one by one.

Most answers go by a value's type alone: a walk asks thousands of times, again after each eager reset.
"""

import enum
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Modules whose objects hold no simulator state; torch.distributions' do (sampling keeps its Gaussians there).
FOREIGN = {"torch", "numpy", "gym", "gymnasium", "pyglet", "matplotlib"} | set(sys.stdlib_module_names)
CONTAINERS = {list, tuple, dict}
PLAIN = {int, float, bool, str, type(None)}  # most of what a walk meets
# Scratch that World.step fills again before it reads it, and what merely draws: neither decides the next step.
SCRATCH = {"forces_dict", "torques_dict", "entity_index_map", "viewer", "text_lines", "_render"}


def holds_state(value: Any) -> bool:
    """Whether to look inside an object: instances of the simulator's, the scenario's and the user's own classes."""
    return type(value) not in PLAIN and _instances_hold_state(type(value)) and has_attributes(value)


@functools.lru_cache(maxsize=4096)
def _instances_hold_state(kind: type) -> bool:
    if issubclass(kind, (type, enum.Enum, types.FunctionType, types.MethodType, types.ModuleType, Tensor)):
        return False
    if issubclass(kind, torch.nn.Module):
        return True
    module = kind.__module__
    foreign = module.partition(".")[0] in FOREIGN and not module.startswith("torch.distributions")
    return not foreign and not module.startswith("torch.distributions.constraints")


def has_attributes(value: Any) -> bool:
    """Whether a value's attributes can be listed: it has a `__dict__`, or its class names them in `__slots__`."""
    if type(value) in CONTAINERS:
        return False
    return hasattr(value, "__dict__") or (not isinstance(value, (list, tuple, dict, str)) and bool(_slots(type(value))))


@functools.lru_cache(maxsize=4096)
def _slots(kind: type) -> list[str]:
    slots = [cls.__dict__.get("__slots__", ()) for cls in kind.__mro__ if cls.__module__ != "builtins"]
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


class SlotsOf:
    """The attributes of an object with `__slots__`, as a dict's items; with a `__dict__`, that is taken instead."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __getitem__(self, name: str) -> Any:
        return getattr(self.owner, name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self.owner, name, value)

    def get(self, name: str) -> Any:
        return getattr(self.owner, name, None)

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self.owner, name)) for name in _slots(type(self.owner)) if hasattr(self.owner, name)]


def attributes(owner: Any) -> Any:
    """What holds an object's attributes: its `__dict__`, else a view of its slots."""
    return vars(owner) if hasattr(owner, "__dict__") else SlotsOf(owner)


def children(owner: Any, path_of: dict[int, str]) -> Iterator[tuple[str, Any, Any]]:
    """(label, key, value) of an object's attributes or a container's items."""
    if has_attributes(owner):
        yield from ((key, key, value) for key, value in list(attributes(owner).items()) if key not in SCRATCH)
    elif isinstance(owner, dict):
        for i, (key, value) in enumerate(owner.items()):
            yield _label(key, i, path_of), key, value
    else:
        yield from ((str(i), i, value) for i, value in enumerate(owner))


def _label(key: Any, position: int, path_of: dict[int, str]) -> str:
    """A dict key's name in paths, the same in every simulator of the scenario whatever the order of insertion."""
    if id(key) in path_of:
        return f"<{path_of[id(key)]}>"
    if isinstance(key, frozenset) and all(isinstance(part, str) for part in key):
        return "+".join(sorted(key))
    plain = key if isinstance(key, tuple) else (key,)
    return str(key) if all(isinstance(part, (str, int, float)) for part in plain) else f"#{position}"
