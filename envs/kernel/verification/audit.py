"""Watches a scenario step: what it leaves changed beside tensors, which code it runs, which outside sources it asks.

A kernel repeats tensor operations only. A step that also counts, appends, draws from a generator of its own, reads the
clock or opens a file would be frozen at what it did while it was traced. Such a step is *impure*, and has no kernel.
"""

from __future__ import annotations

import gc
import io
import random
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from envs.python_state.bytecode import mention
from envs.python_state.state import SIZE, PythonState
from envs.python_state.tokens import TooMuchState, is_followed
from envs.vmas.simulator_state import StateMap

CLOCKS = {
    "time",
    "time_ns",
    "perf_counter",
    "perf_counter_ns",
    "monotonic",
    "monotonic_ns",
    "process_time",
    "process_time_ns",
    "thread_time",
    "thread_time_ns",
    "localtime",
    "gmtime",
    "ctime",
    "strftime",
}
OUTSIDE = {
    ("posix", "urandom"): "draws random numbers from the operating system",
    ("posix", "getrandom"): "draws random numbers from the operating system",
    ("_posixsubprocess", "fork_exec"): "starts another program",
    ("posix", "fork"): "starts another process",
    ("posix", "stat"): "asks for a file's state",
    ("posix", "listdir"): "lists a folder",
    ("posix", "scandir"): "lists a folder",
    ("_thread", "start_new_thread"): "starts a thread",
    ("builtins", "input"): "waits for input",
    **{("time", name): "reads the clock" for name in CLOCKS},
}
FILES = {("_io", "open"), ("io", "open"), ("posix", "open")}
READS = {"read", "readline", "readlines", "readinto"}
NAMES = {name for _, name in (*OUTSIDE, *FILES)} | {"now", "utcnow", "today"} | READS
UNSEEDED = {"Random.__init__", "Random.seed"}  # with no seed, it is the operating system's
OURS = str(Path(__file__).resolve().parents[2])
IMPORTING = ("<frozen importlib", "linecache.py", "tokenize.py", "importlib/")  # open files of Python's own accord


def python_state(simulator: Any, state: StateMap) -> PythonState:
    """The Python state of a simulator whose tensors `state` holds. Raises TooMuchState."""
    covered = {id(slot.value) for slot in state.tensors.values()}
    return PythonState({"": simulator}, covered, state.entities())


class StepAudit:
    """Notes why a scenario's steps are impure; `reason` is one sentence, empty while nothing was seen.

    It looks on while the environment makes the steps that it makes anyway, so that it disturbs nothing.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.codes: dict[types.CodeType, str] = {}
        self._tokens: PythonState | None = None

    def look(self, simulator: Any, state: StateMap) -> PythonState | None:
        """Walks the Python state as it is now; keeps the reason where that is not possible."""
        try:
            current = python_state(simulator, state)
        except TooMuchState as error:
            self._because(f"the scenario cannot be watched: {error}")
            return None
        self.codes.update(current.codes)
        return current

    def compare(self, before: PythonState | None, after: PythonState | None, doing: str, first: bool = False) -> None:
        """Notes what differs between two walks. first: dicts may have been filled with tensors."""
        if before is None or after is None:
            return
        for path in before.changes(after):
            if first and path.endswith(SIZE):
                continue
            self._because(f"{doing} changes {describe(path.removesuffix(SIZE), self.codes)}")
            return

    @contextmanager
    def step(self, calls: bool = True) -> Iterator[None]:
        """Around a step: Python's and NumPy's global generators, clocks, files, the environment's variables.

        calls: whether to look at every call, which makes Python two to three times slower.
        """
        before = random.getstate(), numpy_state()
        with watched() if calls else nullcontext(Watch()) as watch:
            yield
        if watch.reason:
            self._because(watch.reason)
        if before[0] != random.getstate():
            self._because("the step draws from Python's random generator" + self._drawing("random"))
        if before[1] != numpy_state():
            self._because("the step draws from NumPy's random generator" + self._drawing("np", "numpy"))
        self._unknown(watch)

    def _drawing(self, *names: str) -> str:
        mine = [code for code in self.codes if not _is_simulator(code)]
        place = next((m for m in (mention(iter(mine), name) for name in names) if m), "")
        return f" at {place}" if place else ""

    def _unknown(self, watch: Watch) -> None:
        """Code that ran but that the walk did not find: its changes would go unseen."""
        if not self.codes:
            return
        for code, module in watch.codes.items():
            if (
                code not in self.codes
                and not _is_vmas(code)
                and module.partition(".")[0] not in ("envs", "agents", "marl")
            ):
                self._because(f"the step runs {code.co_qualname} ({_place(code)}), which is found only by running it")
                return

    def _because(self, reason: str) -> None:
        self.reason = self.reason or reason


def numpy_state() -> tuple:
    """The full state of NumPy's global generator, comparable: the words, the position in them, the kept Gaussian."""
    name, words, position, has_gauss, gauss = np.random.get_state()
    return name, words.tobytes(), position, has_gauss, gauss


def describe(path: str, codes: dict[types.CodeType, str]) -> str:
    """A path of Python state and the line of the user's code that sets it."""
    mine = [code for code in codes if not _is_simulator(code)]
    parts = [part for part in reversed(path.split(".")) if part.isidentifier()]
    place = next((line for line in (mention(iter(mine), part) for part in parts) if line), "")
    return f"{path} at {place}" if place else path


def _is_vmas(code: types.CodeType) -> bool:
    return "/vmas/" in code.co_filename.replace("\\", "/")


def _is_simulator(code: types.CodeType) -> bool:
    return "/vmas/simulator/" in code.co_filename.replace("\\", "/")


def _place(code: types.CodeType) -> str:
    return f"{code.co_filename.rpartition('/')[2]}:{code.co_firstlineno}"


class Watch:
    """What ran within `watched()`: code of followed modules, and the first outside source that was asked."""

    def __init__(self) -> None:
        self.reason = ""
        self.codes: dict[types.CodeType, str] = {}
        self._others: set[types.CodeType] = set()

    def profile(self, frame: types.FrameType, event: str, arg: Any) -> None:
        """sys.setprofile's function: calls of Python functions and of C functions."""
        if event == "call":
            code = frame.f_code
            if code in self.codes or code in self._others:
                return
            module = frame.f_globals.get("__name__") or ""
            if code.co_qualname in UNSEEDED and frame.f_locals.get("x", 0) is None:
                self._note("the step draws random numbers from the operating system", frame.f_back)
            elif code.co_qualname in ("manual_seed", "seed") and module == "torch.random":
                self._note("the step seeds torch's random generator", frame.f_back)
            elif code.co_qualname == "_Environ.__getitem__":
                self._note(f"the step reads the environment variable {frame.f_locals.get('key')}", frame.f_back)
            elif is_followed(module):
                self.codes[code] = module
            else:
                self._others.add(code)
        elif event == "c_call" and arg.__name__ in NAMES and not self.reason:
            name, module = arg.__name__, getattr(arg, "__module__", None)
            owner = getattr(arg, "__self__", None)
            if isinstance(owner, type) and owner.__module__ == "datetime":
                self._note("the step reads the clock", frame)
            elif (what := OUTSIDE.get((module, name))) is not None:
                self._note(f"the step {what}", frame)
            elif (module, name) in FILES:
                self._note("the step opens a file", frame)
            elif name in READS and isinstance(owner, io.IOBase):
                self._note("the step reads from a file", frame)

    def _note(self, reason: str, frame: types.FrameType | None) -> None:
        if self.reason:
            return
        inner = frame
        while frame is not None:
            file = frame.f_code.co_filename
            if any(part in file for part in IMPORTING):
                return
            if file.startswith(OURS):  # what called the step has no part in it
                frame = None
                break
            if is_followed(frame.f_globals.get("__name__") or "") and "/vmas/" not in file:
                break
            frame = frame.f_back
        frame = frame or inner
        where = f" at {frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}" if frame is not None else ""
        self.reason = reason + where


@contextmanager
def watched() -> Iterator[Watch]:
    """Within it, calls are noted. A profiler of this thread goes on afterwards, cProfile's too.

    Garbage is collected later: what finalizers of others' objects open and run is no part of a step.
    """
    watch, outer, collecting = Watch(), sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(watch.profile)
    try:
        yield watch
    finally:
        if outer is None or callable(outer):
            sys.setprofile(outer)
        else:  # cProfile's is no function
            sys.setprofile(None)
            outer.enable()
        if collecting:
            gc.enable()
