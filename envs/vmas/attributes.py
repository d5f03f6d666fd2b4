"""Which Python objects a walk through a simulator looks into, and what holds their attributes.

Most answers go by a value's type alone: a walk asks thousands of times, again after each eager reset.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from typing import Any

import torch
from torch import Tensor

# Modules whose objects hold no simulator state; torch.distributions' do (sampling keeps its Gaussians there).
FOREIGN = {"torch", "numpy", "gym", "gymnasium", "pyglet", "matplotlib"} | set(sys.stdlib_module_names)
CONTAINERS = {list, tuple, dict}
PLAIN = {int, float, bool, str, type(None)}  # most of what a walk meets


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
