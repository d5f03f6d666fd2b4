"""What a code object reads and writes, by name: which globals, attributes and modules, and where in its file."""

from __future__ import annotations

import dis
import functools
import hashlib
import types
from collections.abc import Iterator

_GLOBALS = {dis.opmap[name] for name in ("LOAD_GLOBAL", "STORE_GLOBAL", "LOAD_NAME", "DELETE_GLOBAL")}
_LOAD_GLOBAL, _IMPORT, _EXTENDED = dis.opmap["LOAD_GLOBAL"], dis.opmap["IMPORT_NAME"], dis.opmap["EXTENDED_ARG"]


def nested_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and those of the functions, lambdas and comprehensions in it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from nested_codes(const)


@functools.lru_cache(maxsize=16_384)
def code_digest(code: types.CodeType) -> str:
    """A name for what a code object does: its instructions, constants and names, without file and line numbers."""
    consts = [
        code_digest(c) if isinstance(c, types.CodeType) else (type(c).__name__, _stable(c)) for c in code.co_consts
    ]
    parts = (
        code.co_code.hex(),
        consts,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_flags,
        code.co_argcount,
        code.co_kwonlyargcount,
        getattr(code, "co_exceptiontable", b"").hex(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _stable(const: object) -> str:
    """A constant's text, the same in every process: a set's order depends on the process."""
    if isinstance(const, frozenset):
        return repr(sorted(map(repr, const)))
    return repr(const)


@functools.lru_cache(maxsize=16_384)
def _by_operation(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """(names of globals, names of imported modules) of a code object and those in it."""
    read, imported = set(), set()
    for part in nested_codes(code):
        raw, extended = part.co_code, 0
        for i in range(0, len(raw), 2):
            operation, argument = raw[i], raw[i + 1] | extended
            if operation == _EXTENDED:
                extended = argument << 8
                continue
            extended = 0
            if operation in _GLOBALS:
                index = argument >> 1 if operation == _LOAD_GLOBAL else argument
                read.add(part.co_names[index])
            elif operation == _IMPORT:
                imported.add(part.co_names[argument])
    return frozenset(read), frozenset(imported)


def global_names(code: types.CodeType) -> frozenset[str]:
    """Names of the globals that a function reads or sets, and those that its text constants may name."""
    texts = {c for part in nested_codes(code) for c in part.co_consts if isinstance(c, str) and c.isidentifier()}
    return _by_operation(code)[0] | texts


def imported_names(code: types.CodeType) -> frozenset[str]:
    """Modules that a function imports when it runs."""
    return _by_operation(code)[1]


@functools.lru_cache(maxsize=16_384)
def attribute_names(code: types.CodeType) -> frozenset[str]:
    """Names that a function may read as attributes, as text for `getattr` too."""
    names: set[str] = set()
    for part in nested_codes(code):
        names.update(part.co_names)
        names.update(c for c in part.co_consts if isinstance(c, str) and c.isidentifier())
    return frozenset(names)


def mention(codes: Iterator[types.CodeType], name: str) -> str:
    """Where code sets `name`, else where it reads it: "file.py:line", or "" if none does."""
    first_read = ""
    for code in codes:
        for instruction in dis.get_instructions(code):
            if instruction.argval != name or instruction.positions is None:
                continue
            place = f"{code.co_filename.rpartition('/')[2]}:{instruction.positions.lineno}"
            if instruction.opname.startswith("STORE"):
                return place
            first_read = first_read or place
    return first_read
