"""What decides a scenario's step beside the simulator's tensors: code, attributes, globals, closures, generators.

A walk starts at the simulator and goes on through the classes of what it meets, their functions, and the globals,
closures and modules that those functions name. It gives one small token per value, under a readable path. Equal tokens
before and after a step mean that the step left Python's state alone. A digest of all of them names a kernel.
"""

from __future__ import annotations

import contextlib
import contextvars
import enum
import functools
import hashlib
import io
import itertools
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.python_state.bytecode import attribute_names, code_digest, global_names, imported_names, nested_codes
from envs.python_state.tokens import (  # fmt: skip
    CLASS_BOOKKEEPING,
    IGNORED_ATTRIBUTES,
    IGNORED_PACKAGES,
    PLAIN,
    TooMuchState,
    array_token,
    generator_state,
    is_followed,
    key_label,
    library_token,
    memory,
    order,
)

SIZE = ".<size>"  # of a dict: the first step may fill one with tensors, which are watched as such
MOST_VALUES = 300_000  # a scenario that reaches more is stepped eagerly
MOST_BYTES = 512 * 2**20  # of arrays and tensors, likewise


class PythonState:
    """One walk. tokens: {path: token} of every value; codes: {code object: path} of every function that was read.

    roots: {path: object} where the walk starts. covered: ids of tensors that are watched elsewhere. entities: objects
    whose path is known beforehand, so that references to them read the same in every simulator of a scenario.
    Raises TooMuchState.
    """

    def __init__(
        self, roots: dict[str, Any], covered: AbstractSet[int] = frozenset(), entities: dict[str, Any] | None = None
    ):
        self.tokens: dict[str, Any] = {}
        self.codes: dict[types.CodeType, str] = {}
        self._covered = covered
        self._path_of: dict[int, str] = {}
        self._alive: list[Any] = []  # so that no id is used twice during the walk
        self._queue: deque[tuple[str, Any]] = deque()
        self._modules: dict[str, types.ModuleType] = {}
        self._attributes: set[str] = set()  # names that some function reads as an attribute
        self._read: set[tuple[str, str]] = set()  # (module, name) walked so far
        self._bytes = 0
        for path, value in (entities or {}).items():
            self._enter(path, value)
        for path, value in roots.items():
            self._visit(path, value)
        while self._queue or self._read_modules():
            path, value = self._queue.popleft()
            self._walk(path, value)
            if len(self.tokens) > MOST_VALUES:
                raise TooMuchState(f"it reaches more than {MOST_VALUES} Python values")

    def digest(self, leave_out: AbstractSet[str] = frozenset()) -> str:
        """One name for all of it, the same in another process."""
        parts = sorted(
            (path, str(token))
            for path, token in self.tokens.items()
            if path not in leave_out and not path.endswith(SIZE)
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]

    def changes(self, later: PythonState) -> list[str]:
        """Paths whose values differ between two walks, the shortest first."""
        paths = [p for p in {**self.tokens, **later.tokens} if self.tokens.get(p) != later.tokens.get(p)]
        return sorted(paths, key=lambda p: (p.count("."), len(p), p))

    # ---- the walk

    def _enter(self, path: str, value: Any) -> None:
        self._path_of[id(value)] = path
        self._alive.append(value)
        self._queue.append((path, value))

    def _visit(self, path: str, value: Any) -> None:
        """Gives a plain value its token, or puts anything else in the queue."""
        if isinstance(value, enum.Enum):
            self.tokens[path] = f"{type(value).__qualname__}.{value.name}"
        elif type(value) in PLAIN:
            self.tokens[path] = (type(value).__name__, repr(value))
        elif id(value) in self._path_of:
            self.tokens[path] = f"-> {self._path_of[id(value)]}"
        elif isinstance(value, Tensor) and id(value) in self._covered:
            return
        else:
            self._enter(path, value)

    def _walk(self, path: str, value: Any) -> None:
        """One object: its token, and its parts into the queue."""
        kind, tokens = type(value), self.tokens
        if isinstance(value, types.ModuleType):
            if is_followed(value.__name__):
                self._modules.setdefault(value.__name__, value)
            tokens[path] = library_token(value.__name__)
        elif isinstance(value, type):
            self._class(value)
            tokens[path] = f"class {value.__module__}.{value.__qualname__}"
        elif isinstance(value, types.FunctionType):
            self._function(path, value)
        elif isinstance(value, types.MethodType):
            tokens[path] = "method"
            self._visit(f"{path}.__self__", value.__self__)
            self._visit(f"{path}.__func__", value.__func__)
        elif isinstance(value, (classmethod, staticmethod)):
            self._visit(f"{path}.__func__", value.__func__)
        elif isinstance(value, property):
            for name in ("fget", "fset"):
                self._visit(f"{path}.{name}", getattr(value, name))
        elif isinstance(value, functools.partial):
            tokens[path] = "partial"
            self._parts(path, {"func": value.func, "args": value.args, "keywords": value.keywords})
        elif isinstance(value, functools._lru_cache_wrapper):
            self._visit(f"{path}.__wrapped__", value.__wrapped__)  # its counts of hits change nothing
        elif isinstance(value, types.CellType):
            try:
                self._visit(path + ".cell", value.cell_contents)
            except ValueError:
                tokens[path] = "empty"
        elif isinstance(value, Tensor):
            tokens[path] = self._array(
                value.detach().cpu().numpy()
                if value.dtype != torch.bfloat16 and not value.is_sparse
                else np.array(repr(value))
            )
        elif isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value)
            tokens[path] = self._array(array)
            if array.dtype == object:
                self._parts(path, dict(enumerate(array.reshape(-1))))
        elif (state := generator_state(value)) is not None:
            tokens[path] = state
        elif isinstance(value, dict):
            tokens[path] = kind.__name__
            tokens[path + SIZE] = len(value)
            self._parts(path, {self._label(key, i): item for i, (key, item) in enumerate(value.items())})
            self._attributes_of(path, value)
        elif isinstance(value, (set, frozenset)):
            plain = sorted(repr(item) for item in value if type(item) in PLAIN)
            tokens[path] = (kind.__name__, len(value), *plain)
            odd = [item for item in value if type(item) not in PLAIN]
            self._parts(path, {str(i): item for i, item in enumerate(sorted(odd, key=order))})
        elif isinstance(value, (list, tuple, deque)):
            tokens[path] = (kind.__name__, len(value))
            self._parts(path, dict(enumerate(value)))
            self._attributes_of(path, value)
        elif isinstance(value, types.GeneratorType):
            frame = value.gi_frame
            tokens[path] = ("generator", -1 if frame is None else frame.f_lasti)
            self._visit(f"{path}.gi_code", value.gi_code)
            if frame is not None:
                self._parts(path, dict(frame.f_locals))
        elif isinstance(value, types.CodeType):
            self._code(path, value)
        elif isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):  # their text holds an address
            tokens[path] = f"{getattr(value, '__module__', None)}.{value.__qualname__}"
            if not isinstance(value.__self__, (types.ModuleType, type)):
                self._visit(f"{path}.__self__", value.__self__)
        elif isinstance(value, torch.jit.ScriptFunction):
            tokens[path] = ("script", value.code)
        elif isinstance(value, (itertools.count, itertools.repeat)):
            tokens[path] = repr(value)
        elif isinstance(value, contextlib.AbstractContextManager) and kind.__module__ == "contextlib":
            tokens[path] = kind.__name__  # made by each call of what it decorates
            self._visit(f"{path}.func", getattr(value, "func", None))
        elif isinstance(value, contextvars.ContextVar):
            self._visit(f"{path}.value", value.get(None))
        elif isinstance(value, threading.local):
            tokens[path] = "local"
            self._parts(path, dict(vars(value)))
        elif isinstance(value, (weakref.WeakKeyDictionary, weakref.WeakValueDictionary)):
            tokens[path] = (kind.__name__, len(value))
            self._parts(path, {self._label(key, i): item for i, (key, item) in enumerate(value.items())})
        elif isinstance(value, io.IOBase):
            try:
                tokens[path] = ("file", value.tell())
            except (OSError, ValueError):
                tokens[path] = "file whose position cannot be read"
        elif hasattr(kind, "__next__"):
            self._iterator(path, value)
        else:
            self._object(path, value)
            if (content := memory(value)) is not None:
                tokens[path] = (
                    tokens[path][0] if isinstance(tokens[path], tuple) else tokens[path],
                    self._array(content),
                )

    def _object(self, path: str, value: Any) -> None:
        """An instance: its class and its attributes."""
        kind = type(value)
        module = kind.__module__
        self.tokens[path] = f"{library_token(module)}.{kind.__qualname__}"
        if module.partition(".")[0] in IGNORED_PACKAGES or module.startswith("vmas.simulator.rendering"):
            return
        if is_followed(module):
            self._visit(f"{path}.__class__", kind)
        elif not hasattr(value, "__dict__"):
            if type(value).__repr__ is not object.__repr__ and " at 0x" not in (text := repr(value)):
                self.tokens[path] = (self.tokens[path], "device" if isinstance(value, torch.device) else text[:2000])
            elif isinstance(value, types.BuiltinFunctionType):
                self.tokens[path] = (self.tokens[path], value.__qualname__)
            return
        self._attributes_of(path, value)

    def _attributes_of(self, path: str, value: Any) -> None:
        if hasattr(value, "__dict__"):
            self._parts(path, vars(value))
        for cls in type(value).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            if is_followed(cls.__module__):
                names = (slots,) if isinstance(slots, str) else tuple(slots)
                self._parts(path, {n: getattr(value, n) for n in names if n != "__dict__" and hasattr(value, n)})

    def _parts(self, path: str, parts: dict[Any, Any]) -> None:
        for name, part in parts.items():
            if name not in IGNORED_ATTRIBUTES:
                self._visit(f"{path}.{name}" if path else str(name), part)

    def _label(self, key: Any, position: int) -> str:
        if id(key) in self._path_of:
            return f"<{self._path_of[id(key)]}>"
        return key_label(key, position)

    def _iterator(self, path: str, value: Any) -> None:
        try:
            self.tokens[path] = type(value).__name__
            self._parts(path, dict(enumerate(value.__reduce__()[1:])))
        except (TypeError, AttributeError):
            self.tokens[path] = f"{type(value).__name__} whose position cannot be read"

    def _array(self, array: np.ndarray) -> tuple:
        self._bytes += array.nbytes
        if self._bytes > MOST_BYTES:
            raise TooMuchState(f"it reaches more than {MOST_BYTES >> 20} MiB of arrays")
        return array_token(array)

    # ---- classes, functions and modules

    def _class(self, cls: type) -> None:
        for base in cls.__mro__:
            name = f"{base.__module__}.{base.__qualname__}"
            if not is_followed(base.__module__) or ("class", name) in self._read:
                continue
            self._read.add(("class", name))
            self._parts(name, {k: v for k, v in vars(base).items() if k not in CLASS_BOOKKEEPING})

    def _function(self, path: str, value: types.FunctionType) -> None:
        module = value.__module__ or value.__globals__.get("__name__") or ""
        if not is_followed(module):
            self.tokens[path] = f"{library_token(module)}.{value.__qualname__}"
            return
        self._code(path, value.__code__)
        if value.__defaults__:
            self._parts(f"{path}.<default>", dict(enumerate(value.__defaults__)))
        if value.__kwdefaults__:
            self._parts(f"{path}.<default>", value.__kwdefaults__)
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=False):
            self._visit(f"{path}.<closure>.{name}", cell)
        self._parts(path, vars(value))
        for name in global_names(value.__code__):
            self._global(module, value.__globals__, name)
        for name in imported_names(value.__code__):
            package = value.__globals__.get("__package__")
            for full in (name, f"{package}.{name}" if package else name):
                if full in sys.modules and is_followed(full):
                    self._modules.setdefault(full, sys.modules[full])

    def _code(self, path: str, code: types.CodeType) -> None:
        self.tokens[path] = code_digest(code)
        self._attributes |= attribute_names(code)
        for nested in nested_codes(code):
            self.codes.setdefault(nested, path)

    def _global(self, module: str, names: dict[str, Any], name: str) -> None:
        if (module, name) not in self._read and name in names:
            self._read.add((module, name))
            self._visit(f"{module}.{name}", names[name])

    def _read_modules(self) -> bool:
        """Walks what functions read of modules by name (`helper.BONUS`); returns whether that found something new."""
        for name, module in list(self._modules.items()):
            for attribute in self._attributes & vars(module).keys():
                self._global(name, vars(module), attribute)
        return bool(self._queue)
