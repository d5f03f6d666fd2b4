"""A library of another processor's machine code, called as ctypes calls one: the memory behind addresses travels along.

Callers hand over addresses of tensors and of ctypes arrays that hold further addresses. Whoever emulates the processor
has another memory. So before a call every object behind an address is found among those alive, its bytes are copied
there, and numbers in ctypes objects that are addresses of other such objects are replaced. Afterwards the bytes come
back. This takes milliseconds per call: it is for comparisons. While a library is at work what was alive before it
is kept from Python's collector.
"""

import bisect
import ctypes
import functools
import gc
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from marl.core.errors import CannotCompile

PLAIN = (ctypes._SimpleCData, ctypes.Array, ctypes.Structure)
_at_work: list["EmulatedLibrary"] = []
_old: list[Any] = []  # tensors and ctypes objects from before the first of them


class EmulatedLibrary:
    """A library at work in an emulator's process, which ends with it.

    Functions are attributes with `argtypes` and `restype`, as of ctypes.CDLL; integers, addresses and float32 are
    known.
    Not for functions that keep addresses after a call.

    Args:
        path: the library.
        command: the emulator, its options, and the call server built for that processor (`call_server.cpp`).

    Attributes:
        called: names of the functions that were.
    """

    def __init__(self, path: Path, command: Sequence[str]) -> None:
        self._words = tempfile.TemporaryFile()
        self._server = subprocess.Popen(
            [*command, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words
        )
        assert self._server.stdin is not None and self._server.stdout is not None  # pipes
        self._asked, self._answers = self._server.stdin, self._server.stdout
        self._functions: dict[str, _Function] = {}
        self.called: set[str] = set()
        if not _at_work:  # later walks, of all libraries, leave out what is frozen here
            gc.unfreeze()  # what others have frozen is found, too
            _old.extend(_found(gc.get_objects()))
            gc.freeze()
        _at_work.append(self)

    def __getattr__(self, name: str) -> "_Function":
        if name.startswith("_"):
            raise AttributeError(name)
        return self._functions.setdefault(name, _Function(self, name))

    def call(self, name: str, integers: list[int], reals: list[float]) -> int:
        """The result of a function, as int64. Raises CannotCompile where it crashes or writes past an object's end."""
        self.called.add(name)
        memory = _Memory(integers, _ranges([*_old, *_found(gc.get_objects())]))
        code = name.encode()
        parts = [struct.pack("<q", len(code)), _padded(code)]
        counts = len(memory.places), len(memory.moves), len(integers), len(reals)
        parts += [struct.pack("<4q", *counts), struct.pack(f"<{counts[0]}q", *[size for _, size in memory.places])]
        parts += [struct.pack("<4q", *move) for move in memory.moves]
        parts += [struct.pack("<2q", *memory.found(value, value)) for value in integers]
        parts += [struct.pack("<f4x", value) for value in reals]
        parts += [_padded(ctypes.string_at(start, size)) for start, size in memory.places]
        try:
            self._asked.write(b"".join(parts))
            self._asked.flush()
        except BrokenPipeError:
            pass  # its words say why, below
        result, past = struct.unpack("<2q", self._read(name, 16))
        pointing = {move[0] for move in memory.moves}
        for i, (start, size) in enumerate(memory.places):
            content = self._read(name, -(-size // 8) * 8)
            if i not in pointing:
                ctypes.memmove(start, content, size)
        if past >= 0:
            raise CannotCompile(f"{name} writes past the end of an object of {memory.places[past][1]} bytes")
        return result

    def _read(self, name: str, size: int) -> bytes:
        content = self._answers.read(size)
        if len(content) < size:
            status = self._server.wait()
            self._words.seek(0)
            words = self._words.read().decode(errors="replace").strip().splitlines()
            said = words[-1] if words else "silent"
            raise CannotCompile(f"the emulator ended with status {status} in {name}: {said}")
        return content

    def close(self) -> None:
        """End the emulator."""
        _at_work.remove(self)
        if not _at_work:
            gc.unfreeze()
            _old.clear()
        self._asked.close()
        self._answers.close()
        self._server.kill()
        self._server.wait()
        self._words.close()

    def __enter__(self) -> "EmulatedLibrary":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Function:
    """One function, called as ctypes' are."""

    def __init__(self, library: EmulatedLibrary, name: str) -> None:
        self.library, self.__name__ = library, name
        self.argtypes: Sequence[type] | None = None
        self.restype: type | None = ctypes.c_int

    def __call__(self, *arguments: Any) -> int | None:
        types = self.argtypes or [ctypes.c_int64] * len(arguments)
        integers, reals = [], []
        for kind, value in zip(types, arguments, strict=True):
            if kind is ctypes.c_float:
                reals.append(float(value))
            elif isinstance(value, PLAIN):
                integers.append(ctypes.addressof(value))
            else:
                integers.append(int(value or 0))
        result = self.library.call(self.__name__, integers, reals)
        return None if self.restype is None else self.restype(result).value


class _Memory:
    """The objects that addresses lead to, and the addresses within them.

    places: (start, bytes) of each. moves: (object, offset, other object, offset in it) for each address in an object.
    """

    def __init__(self, addresses: Sequence[int], alive: list[tuple[int, int, bool]]) -> None:
        self.alive = alive
        self.starts = [start for start, _, _ in self.alive]
        self.places: list[tuple[int, int]] = []
        self.moves: list[tuple[int, int, int, int]] = []
        self.numbers: dict[int, int] = {}  # start -> number of the object
        for address in addresses:
            self.found(address, address)

    def found(self, address: int, otherwise: int) -> tuple[int, int]:
        """(number of the object, offset in it); (-1, otherwise) for a number that is no address."""
        i = bisect.bisect_right(self.starts, address) - 1
        if i < 0 or address >= sum(self.alive[i][:2]):
            return -1, otherwise
        start, size, holds = self.alive[i]
        if start not in self.numbers:
            number = self.numbers[start] = len(self.places)
            self.places.append((start, size))
            if holds:
                words = struct.unpack(f"<{size // 8}q", ctypes.string_at(start, size // 8 * 8))
                for k, word in enumerate(words):
                    other, offset = self.found(word, 0)
                    if other >= 0:
                        self.moves.append((number, 8 * k, other, offset))
        return self.numbers[start], address - start


def _found(things: Iterable[Any]) -> list[Any]:
    """Those of some objects that have memory of interest: tensors and ctypes objects."""
    return [thing for thing in things if _kind(type(thing))]


def _ranges(things: Iterable[Any]) -> list[tuple[int, int, bool]]:
    """(start, bytes, whether it may hold addresses) of tensors' storages and ctypes objects, by start."""
    found = {}
    for thing in things:
        if _kind(type(thing)) == "plain":
            found[ctypes.addressof(thing)] = ctypes.sizeof(thing), True
        elif thing.device.type == "cpu" and thing.layout is torch.strided:
            storage = thing.untyped_storage()
            if storage.data_ptr():
                found[storage.data_ptr()] = storage.nbytes(), False
    return sorted((start, size, holds) for start, (size, holds) in found.items() if size)


@functools.cache
def _kind(kind: type) -> str:
    """Whether objects of a type are ctypes' ("plain"), tensors ("tensor") or neither: asked of all there are."""
    return "plain" if issubclass(kind, PLAIN) else "tensor" if kind in (torch.Tensor, torch.nn.Parameter) else ""


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 8)
