"""A policy's C file in this process: compiled as a shared library by a C compiler, called through ctypes.

Shapes: B observations, A agents in a group, F features, D numbers of an action, M numbers of memory.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.deploy.c_code.writer import c_name
from marl.core.errors import CannotCompile, UserError

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2")
COMPILERS = ("gcc", "clang", "cc")  # the first that is installed, where $CC names none


def find_compiler() -> str:
    """This machine's C compiler: $CC, gcc, clang or cc. Raises UserError where there is none."""
    for name in (os.environ.get("CC"), *COMPILERS):
        if name and (found := shutil.which(name)):
            return found
    raise UserError("format=c: no C compiler was found (looked for $CC, gcc, clang and cc)")


def compile_c(source: Path, target: Path, compiler: str, *flags: str) -> Path:
    """Compile a policy's C file with `FLAGS` and others. Raises CannotCompile with the compiler's words."""
    command = [compiler, *FLAGS, *flags, str(source), "-o", str(target), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotCompile(f"{compiler} failed: {done.stderr.strip()[:1000]}")
    return target


@dataclass
class Prepared:
    """Calls of C functions, an agent's each, with pointers into arrays that live as long as this does.

    memory: [(before, after)], float32 [B, A, M]; functions write to `after`.
    """

    calls: list[tuple[Any, tuple[Any, ...]]] = field(default_factory=list)
    memory: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    inputs: list[np.ndarray] = field(default_factory=list)


class Library:
    """A policy.c that runs here, laid out as the policy.h beside it declares.

    source: policy.c; the library is written into its folder. compiler: a program's name; None: `find_compiler`.
    Inputs and outputs go by the names of `agents.deploy.export.input_names` and `output_names`.

    Raises:
        UserError: there is no C compiler. CannotCompile: it failed.
    """

    def __init__(self, source: Path, compiler: str | None = None) -> None:
        compiler = compiler or find_compiler()
        # A loader gives back what it has under a name already, so another source must get another name.
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
        target = source.with_name(f"policy_{Path(compiler).name}_{digest}.so")
        if not target.is_file():
            compile_c(source, target, compiler, "-shared", "-fPIC")
        self.library = ctypes.CDLL(str(target.resolve()))
        header = source.with_suffix(".h").read_text()
        self.sizes = {name: int(size) for name, size in re.findall(r"^#define POLICY_(\w+) (\d+)", header, re.M)}
        self.parameters: dict[str, list[str]] = {}  # {a group's name in C: names of its function's}
        for name, parameters in re.findall(r"^void policy_(\w+)\((.*)\);", header, re.M):
            self.parameters[name] = re.findall(r"(\w+)(?:,|$)", parameters)
            function = getattr(self.library, f"policy_{name}")
            function.argtypes = [ctypes.c_int] + [ctypes.c_void_p] * (len(self.parameters[name]) - 1)
            function.restype = None
        self.integer = set(re.findall(r"^void policy_(\w+)\(.*int \*action\);", header, re.M))

    def prepare(self, feed: Mapping[str, np.ndarray]) -> Prepared:
        """Inputs by name, [B, …], as `step` takes them; masks may be absent.

        Raises UserError where an input's shape is another.
        """
        prepared = Prepared()
        for name in [key.removesuffix("_observation") for key in feed if key.endswith("_observation")]:
            own = c_name(name)
            agents, actions = (self.sizes[f"{own.upper()}_{size}"] for size in ("AGENTS", "ACTIONS"))
            batch = len(feed[f"{name}_observation"])
            action = np.zeros((batch, agents, actions), np.int32 if own in self.integer else np.float32)
            prepared.actions.append(action)
            arrays = [self._input(feed, name, "observation", "FEATURES", np.float32)]
            if "memory" in self.parameters[own]:
                before = self._input(feed, name, "memory", "MEMORY", np.float32)
                prepared.memory.append((before, before.copy()))
                arrays.append(prepared.memory[-1][1])
            if "allowed" in self.parameters[own]:
                given = f"{name}_action_mask" in feed
                arrays.append(self._input(feed, name, "action_mask", "CHOICES", np.uint8) if given else None)
            arrays.append(action)
            prepared.inputs += [array for array in arrays if array is not None]
            # [(address, bytes of one agent's row)]; a null pointer stays one.
            rows = [(0, 0) if x is None else (x.ctypes.data, x.strides[1]) for x in arrays]
            function = getattr(self.library, f"policy_{own}")
            for row in range(batch * agents):
                pointers = (at + row * size if at else None for at, size in rows)
                prepared.calls.append((function, (row % agents, *pointers)))
        return prepared

    def step(self, prepared: Prepared) -> list[np.ndarray]:
        """One call per observation and agent: actions of all groups [B, A, D], then memories after the step [B, A, M].

        The arrays are overwritten by the next step of what was prepared.
        """
        for before, after in prepared.memory:
            after[...] = before
        for function, arguments in prepared.calls:
            function(*arguments)
        return [*prepared.actions, *(after for _, after in prepared.memory)]

    def _input(self, feed: Mapping[str, np.ndarray], group: str, kind: str, size: str, dtype: type) -> np.ndarray:
        own, array = c_name(group).upper(), feed[f"{group}_{kind}"]
        wanted = self.sizes[f"{own}_AGENTS"], self.sizes[f"{own}_{size}"]
        if array.shape[1:] != wanted or len(array) != len(feed[f"{group}_observation"]):
            raise UserError(f"policy.c: {group}_{kind} is to be [B, {wanted[0]}, {wanted[1]}], not {list(array.shape)}")
        return np.ascontiguousarray(array, dtype)
