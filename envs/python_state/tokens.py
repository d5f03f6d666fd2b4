"""Small tokens for single values: which code is read, random generators by their full state, memory, sets in order."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import sys
from typing import Any

import numpy as np
import torch

# What merely draws or reports, and VMAS's own copy of the generators, which is not used: no step reads it back.
IGNORED_ATTRIBUTES = {
    "vmas_random_state",
    "viewer",
    "text_lines",
    "_render",
    "forces_dict",
    "torques_dict",
    "entity_index_map",
}
CLASS_BOOKKEEPING = {
    "__dict__",
    "__weakref__",
    "__doc__",
    "__module__",
    "__annotations__",
    "__abstractmethods__",
    "_abc_impl",
    "__qualname__",
    "__firstlineno__",
    "__static_attributes__",
    "__annotate__",
    "__annotations_cache__",
    "__annotate_func__",
    "__slots__",
    "__match_args__",
    "__parameters__",
    "__orig_bases__",
    "__dataclass_fields__",
    "__dataclass_params__",
}
IGNORED_PACKAGES = {"pyglet", "matplotlib", "logging", "threading", "PIL", "IPython", "warnings", "_thread", "weakref"}
PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...), type(NotImplemented))


class TooMuchState(Exception):
    """The walk met more values than can be compared at every start."""


@functools.lru_cache(maxsize=4096)
def is_followed(module: str) -> bool:
    """Whether to read the code of a module: VMAS's and the user's own, no installed library's and not the standard's.

    Installed libraries are named by their files' times and sizes instead (`library_token`).
    """
    root = module.partition(".")[0]
    if root == "vmas":
        return True
    if root in ("torch", "numpy") or root.startswith("namedtuple_"):  # the latter only make tuples
        return False
    if root in sys.stdlib_module_names or root in IGNORED_PACKAGES:
        return root == "__main__"
    files = [str(getattr(sys.modules.get(name), "__file__", None)) for name in (root, module)]
    return not any(part in file for file in files for part in ("site-packages", "dist-packages"))


@functools.lru_cache(maxsize=4096)
def library_token(module: str) -> str:
    """An installed library's module by name, and by its file's size and time of change."""
    file = getattr(sys.modules.get(module), "__file__", None)
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names or root in ("torch", "numpy") or not file:
        return module
    try:
        about = os.stat(file)
    except OSError:
        return module
    return f"{module}@{about.st_size}.{about.st_mtime_ns}"


def memory(value: Any) -> np.ndarray | None:
    """The bytes of a bytearray, an array, a structure of ctypes …; None for what shows none."""
    try:
        with memoryview(value) as view:
            return np.frombuffer(view.tobytes(), np.uint8)
    except (TypeError, ValueError, BufferError):
        return None


def order(item: Any) -> str:
    """A set's items come in an order that depends on the process: by class, and by name where they have one."""
    name = item.__qualname__ if isinstance(item, type) else getattr(item, "name", "")
    return f"{type(item).__qualname__} {name}"


def key_label(key: Any, position: int) -> str:
    """A dict key's name in paths: the key where it is plain, else its place."""
    if isinstance(key, str):
        return key
    parts = key if isinstance(key, tuple) else (key,)
    return repr(key) if all(type(part) in PLAIN for part in parts) else f"#{position}"


def array_token(array: np.ndarray) -> tuple:
    """Type, shape and content of an array."""
    content = repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes()
    return str(array.dtype), array.shape, hashlib.sha256(content).hexdigest()[:16]


def generator_state(value: Any) -> Any | None:
    """The full state of a random generator as a token, None for anything else."""
    if isinstance(value, random.SystemRandom):
        return "SystemRandom"
    if isinstance(value, random.Random):
        state: Any = value.getstate()
    elif isinstance(value, np.random.Generator):
        state = value.bit_generator.state
    elif isinstance(value, np.random.RandomState):
        state = value.get_state()
    elif isinstance(value, np.random.BitGenerator):
        state = value.state
    elif isinstance(value, torch.Generator):
        return ("generator", hashlib.sha256(value.get_state().numpy().tobytes()).hexdigest()[:16])
    else:
        return None
    with np.printoptions(threshold=sys.maxsize, floatmode="unique"):
        return ("generator", hashlib.sha256(repr(state).encode()).hexdigest()[:16])
