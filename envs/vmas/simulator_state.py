"""The simulator's state: every tensor and plain value reachable from it, found once and named by its path.

A *slot* is one place that holds a tensor: a container (an object's `__dict__`, a list, a dict) and a key. Two slots may
hold one and the same tensor; code that rebinds slots keeps such shared identities. A *host* slot holds plain values
(numbers, strings, tuples of them) or refers to another object of the simulator (an agent's goal, say).
"""

from __future__ import annotations

import contextlib
import enum
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.vmas.object_contents import PLAIN, attributes, children, has_attributes, holds_state


@dataclass(slots=True)
class Slot:
    """One place that holds a value: `steps` leads from the root to its container, `key` to the value in it."""

    path: str
    steps: tuple[tuple[str, Any], ...]  # ("attribute" | "item", key), …
    container: Any
    key: Any

    @property
    def value(self) -> Any:
        return self.container[self.key]

    def write(self, value: Any) -> None:
        if isinstance(self.container, tuple):  # can't be rebound: change the tensor in place
            self.container[self.key].copy_(value)
        else:
            self.container[self.key] = value


def like(old: Tensor, value: Tensor) -> Tensor:
    """A copy of `value` to put in the place of `old`: a parameter, or a leaf with gradients, if that is one."""
    copy = value.detach().clone()
    if isinstance(old, torch.nn.Parameter):
        return torch.nn.Parameter(copy, old.requires_grad)
    return copy.requires_grad_(old.requires_grad and old.is_leaf)


def over(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device: from the CPU to a GPU by page-locked memory, without a wait."""
    if value.device.type == device.type:
        return value
    return value.contiguous().pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def copies(slots: dict[str, Slot]) -> dict[str, Tensor]:
    """{path: copy} of the tensors in `slots`. Slots that hold one tensor get one copy."""
    copied: dict[int, Tensor] = {}
    return {
        path: copied.setdefault(id(value), like(value, value))
        for path, value in ((path, slot.value) for path, slot in slots.items())
    }


class StateMap:
    """All slots below `root` (a VMAS Environment). `refresh()` finds them again after an eager reset.

    tensors: {path: Slot} of tensors. host: {path: Slot} of plain values and references. arrays: {path: Slot} of NumPy
    arrays. beside: {path: Slot} of all else that is not empty of meaning: generators, sets, counters
    (`envs.vmas.carried`).
    """

    def __init__(self, root: Any) -> None:
        self.root = root
        self._enums: dict[str, type[enum.Enum]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Walk again: containers may have been replaced."""
        self.tensors: dict[str, Slot] = {}
        self.host: dict[str, Slot] = {}
        self.arrays: dict[str, Slot] = {}
        self.beside: dict[str, Slot] = {}
        self._path_of: dict[int, str] = {}
        self._object_at: dict[str, Any] = {}
        plain: list[Slot] = []
        queue: deque[tuple[str, tuple, Any]] = deque()
        self._visit("", self.root)
        world = getattr(self.root, "world", None)
        for name in ("_landmarks", "_agents"):  # first, so that a goal refers to a landmark, whatever else holds it
            for i, entity in enumerate(getattr(world, name, ())):
                steps = (("attribute", "world"), ("attribute", name), ("item", i))
                self._visit(f"world.{name}.{i}", entity)
                queue.append((f"world.{name}.{i}", steps, entity))
        queue.append(("", (), self.root))
        while queue:  # breadth first: objects go by their shortest path
            path, steps, owner = queue.popleft()
            named = has_attributes(owner)
            container, kind = (attributes(owner), "attribute") if named else (owner, "item")
            for label, key, value in children(owner, self._path_of):
                slot = Slot(_join(path, label), (*steps, (kind, key)), container, key)
                if type(value) in PLAIN:
                    plain.append(slot)
                elif isinstance(value, Tensor):
                    self.tensors[slot.path] = slot
                elif id(value) in self._path_of:
                    plain.append(slot)
                elif holds_state(value) or (isinstance(value, (list, tuple, dict)) and self._has_state(value)):
                    self._visit(slot.path, value)
                    queue.append((slot.path, slot.steps, value))
                else:
                    plain.append(slot)
        for slot in plain:
            if isinstance(slot.container, tuple):
                continue
            value = slot.value
            if type(value) in PLAIN:
                self.host[slot.path] = slot
            elif isinstance(value, np.ndarray):
                self.arrays[slot.path] = slot
            elif self.encode(value) is not NotImplemented:
                self.host[slot.path] = slot
            else:
                self.beside[slot.path] = slot

    def containers(self) -> dict[str, list | dict]:
        """{path: value} of lists and dicts, with plain items or with tensors."""
        containers = {path: value for path, value in self._object_at.items() if isinstance(value, (list, dict))}
        plain = {**self.host, **self.beside}
        return containers | {p: slot.value for p, slot in plain.items() if isinstance(slot.value, (list, dict))}

    def entities(self) -> dict[str, Any]:
        """{path: object} of the world's landmarks and agents."""
        return {
            path: value
            for path, value in self._object_at.items()
            if path.startswith(("world._landmarks.", "world._agents.")) and path.count(".") == 2
        }

    def _visit(self, path: str, value: Any) -> None:
        self._path_of[id(value)] = path
        self._object_at[path] = value

    def _has_state(self, value: Any) -> bool:
        """Whether a list, tuple or dict holds tensors or objects that the walk has not met yet."""
        for item in value.values() if isinstance(value, dict) else value:
            if type(item) in PLAIN:
                continue
            if isinstance(item, (Tensor, np.ndarray)):
                return True
            if id(item) in self._path_of:
                continue
            if holds_state(item) or (isinstance(item, (list, tuple, dict)) and self._has_state(item)):
                return True
        return False

    def encode(self, value: Any) -> Any:
        """A plain value or reference as JSON can carry it; NotImplemented for anything else (functions, arrays…)."""
        if type(value) in PLAIN:
            return value
        if isinstance(value, enum.Enum):  # a colour, say
            self._enums[type(value).__qualname__] = type(value)
            return {"enum": [type(value).__qualname__, value.name]}
        if isinstance(value, (int, float, str)):
            return value
        if id(value) in self._path_of:
            return {"object": self._path_of[id(value)]}
        if type(value) in (list, tuple, torch.Size):
            items = [self.encode(item) for item in value]
            return NotImplemented if NotImplemented in items else {type(value).__name__: items}
        if type(value) is dict and all(isinstance(key, (str, int)) for key in value):
            items = [[key, self.encode(item)] for key, item in value.items()]
            return NotImplemented if any(item is NotImplemented for _, item in items) else {"dict": items}
        return NotImplemented

    def decode(self, value: Any) -> Any:
        """The inverse of `encode`, with references to this simulator's own objects."""
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "object":
            return self._object_at[content]
        if kind == "enum":
            return self._enums[content[0]][content[1]]
        if kind == "dict":
            return {key: self.decode(item) for key, item in content}
        make = {"list": list, "Size": torch.Size}.get(kind, tuple)
        return make([self.decode(item) for item in content])

    def host_values(self) -> dict[str, Any]:
        """{path: encoded value} of the host slots as they are now."""
        return {path: self.encode(slot.value) for path, slot in self.host.items()}

    def write_host(self, values: dict[str, Any]) -> None:
        """Set host slots from encoded values; what is already equal stays untouched."""
        for path, value in values.items():
            slot = self.host.get(path)
            if slot is not None and self.encode(slot.value) != value:
                slot.write(self.decode(value))


@contextlib.contextmanager
def assignments(state: StateMap) -> Iterator[set[str]]:
    """The paths of the attributes that are assigned to within the context, to whatever value.

    Meanwhile every object of the simulator is of a subclass that notes what is set.
    """
    assigned: set[str] = set()
    noting: dict[type, type] = {}
    changed = []

    def subclass(cls: type) -> type:
        def note(self: Any, name: str, value: Any) -> None:
            assigned.add(_join(state._path_of[id(self)], name))
            cls.__setattr__(self, name, value)

        return type(cls.__name__, (cls,), {"__setattr__": note, "__module__": cls.__module__, "__slots__": ()})

    try:
        for value in state._object_at.values():
            cls = type(value)
            if hasattr(value, "__dict__"):
                noting[cls] = noting.get(cls) or subclass(cls)
                with contextlib.suppress(TypeError):  # an object that can't change its class is seen by its values
                    value.__class__ = noting[cls]
                    changed.append((value, cls))
        yield assigned
    finally:
        for value, cls in changed:
            object.__setattr__(value, "__class__", cls)


def _join(path: str, label: str) -> str:
    return f"{path}.{label}" if path else label


def batch_axis(shape: torch.Size, other: torch.Size, num_envs: int, other_envs: int) -> int | None:
    """The axis with num_envs in one shape and other_envs in the other, all else equal; None where both are the same.

    Comparing two simulators of different sizes tells the environment axis from a constant of the same length.
    Raises ValueError where the shapes differ in any other way (several axes, or environments folded into another).
    """
    if shape == other:
        return None
    axes = [i for i, (a, b) in enumerate(zip(shape, other, strict=False)) if a != b]
    if len(shape) != len(other) or len(axes) != 1 or (shape[axes[0]], other[axes[0]]) != (num_envs, other_envs):
        raise ValueError(f"shapes {tuple(shape)} and {tuple(other)} differ in more than one environment axis")
    return axes[0]


def counts_environments(rows: Tensor, axis: int) -> bool:
    """Whether a tensor is an index: integers that grow evenly along the environment axis, as torch.arange(E) does.

    Such a row says which environment it is of; another's must not be put in its place.
    """
    if rows.is_floating_point() or rows.dtype == torch.bool or rows.shape[axis] < 3:
        return False
    grows = rows.diff(dim=axis)
    return bool((grows == grows.narrow(axis, 0, 1)).all() & (grows != 0).all())


def to_bytes(value: Any) -> Tensor:
    """JSON-able data as a uint8 tensor, so that it travels in snapshots; floats come back bitwise."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def from_bytes(packed: Tensor) -> Any:
    """The inverse of `to_bytes`."""
    return json.loads(bytes(packed.cpu().tolist()).decode())
