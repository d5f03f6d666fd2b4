"""From an environment's settings to a verified, compiled kernel, or to one sentence that says why there is none."""

import importlib
import importlib.metadata
import inspect
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import envs.kernel.lower_functions
import envs.kernel.lower_index
import envs.kernel.lower_pointwise
import envs.kernel.lower_reduce
import envs.kernel.lower_shape  # noqa: F401 - these fill the table
from envs.kernel.build import cache_folder, compile_library, compiler, digest, load, machine
from envs.kernel.emit_cpp import emit
from envs.kernel.layout import Layout, layout
from envs.kernel.runtime import KernelStep
from envs.kernel.tape import Refusal
from envs.kernel.trace import TRACED, drawn_values, lower, set_drawn, trace
from envs.kernel.verify import verify

RESETS = 40  # tried to see every value that is drawn for the whole batch change
LARGEST = 100_000  # operations; beyond, compilers take minutes


@dataclass
class Compiled:
    """A kernel on disk and what is needed to call it; `why` is set, and all else empty, where there can't be one.

    varies: the step depends on what resets draw for the whole batch: ask again with one choice, settings["drawn"].
    """

    why: str = ""
    varies: bool = False
    binary: str = ""
    places: Layout | None = None
    constants: dict[tuple[str, int], float] = field(default_factory=dict)
    shapes: dict[str, tuple] = field(default_factory=dict)
    noise: list[tuple] = field(default_factory=list)
    dtypes: dict[tuple, torch.dtype] = field(default_factory=dict)  # of the outputs, in the simulator
    facts: dict[str, Any] = field(default_factory=dict)  # operations, seconds, errors: for reports

    def step(self, num_envs: int, threads: int = 1) -> KernelStep:
        """The kernel for a number of environments."""
        return KernelStep(
            load(cache_folder() / self.binary), self.places, self.constants, self.shapes, self.noise, num_envs, threads
        )


def compiled(settings: dict[str, Any], specialise: bool = True) -> Compiled:
    """The kernel of a VmasEnv with these keyword arguments, from the cache on disk or made now.

    Never raises for what can't become a kernel: `why` says it in one sentence.
    """
    try:
        key = _key(settings, specialise)
    except Refusal as refusal:
        return Compiled(why=str(refusal))
    file = cache_folder() / f"{key}.pt"
    if file.exists():
        found = _read(file)
        if found.why or found.varies or (cache_folder() / found.binary).exists():
            return found
    try:
        made = _make(settings, specialise)
    except Refusal as refusal:
        made = Compiled(why=str(refusal))
    scratch = file.with_suffix(f".{os.getpid()}")
    torch.save(asdict(made), scratch)  # plain values only: reading it back runs no code
    os.replace(scratch, file)
    return made


def _read(file: Path) -> Compiled:
    told = torch.load(file, weights_only=True)
    places = Layout(**told.pop("places")) if told["places"] else told.pop("places")
    return Compiled(**told, places=places)


def _key(settings: dict[str, Any], specialise: bool) -> str:
    """Everything that decides a kernel: settings, the scenario's and our own sources, versions, machine, compiler."""
    from envs.simulator import find_scenario

    scenario = find_scenario(settings["scenario"])
    modules = {cls.__module__ for cls in scenario.__mro__ if not cls.__module__.startswith(("builtins", "abc"))}
    sources = [inspect.getsource(sys.modules[m]) for m in sorted(modules)]
    here = Path(__file__).parent
    ours = [p.read_text() for folder in (here, here.parent) for p in sorted(folder.glob("*.[ph]*")) if p.is_file()]
    told = json.dumps(settings, sort_keys=True, default=repr)
    gxx = Path(compiler()).resolve()
    return digest(
        told,
        specialise,
        sources,
        ours,
        torch.__version__,
        importlib.metadata.version("vmas"),
        machine(),
        gxx,
        gxx.stat().st_mtime,
    )


def _make(settings: dict[str, Any], specialise: bool) -> Compiled:
    from envs.vmas import VmasEnv

    start = time.perf_counter()
    settings = dict(settings)
    drawn = settings.pop("drawn", None)
    twin = VmasEnv(**settings, num_envs=TRACED, pool_size=64, seed=0, fast="off")
    built = time.perf_counter()
    if drawn is not None:
        set_drawn(twin._pool, drawn)
    source, lowered, places = _source(twin, specialise)
    if drawn is None and _depends_on_draws(twin, specialise, source):
        return Compiled(varies=True)
    traced = time.perf_counter()
    library = compile_library(source)
    compiled_at = time.perf_counter()
    made = Compiled("", False, library.name, places, lowered.constants, lowered.shapes, lowered.noise, lowered.dtypes)
    report = verify(twin, made.step(TRACED), unrolled=lowered.unrolled)
    made.facts = {
        "operations": lowered.operations,
        "fields": len(lowered.fields),
        "folded": len(lowered.constants),
        "seconds": {
            "twin": built - start,
            "trace": traced - built,
            "compile": compiled_at - traced,
            "verify": time.perf_counter() - compiled_at,
        },
        "worst": report.worst,
        "compared": report.compared,
        "astray": report.astray,
        "flips": report.flips,
    }
    return made


def _source(twin, specialise: bool):
    lowered = lower(trace(twin), specialise)
    if lowered.operations > LARGEST:
        raise Refusal(f"the step has {lowered.operations} operations per environment, more than {LARGEST}")
    actions = {
        name: (group.n_agents * group.action.size, group.action.kind != "continuous")
        for name, group in twin.spec.groups.items()
    }
    places = layout(lowered, actions)
    return emit(lowered, places), lowered, places


def _depends_on_draws(twin, specialise: bool, source: str) -> bool:
    """Whether the program changes with what resets draw for the whole batch: tried until each value has changed."""
    first = drawn_values(twin._pool)
    unseen, tried = set(first), {repr(first)}
    for _ in range(RESETS):
        if not unseen:
            break
        twin.reset()
        now = drawn_values(twin._pool)
        changed = {path for path in first if now.get(path) != first[path]}
        if repr(now) in tried or not changed & unseen:
            continue
        tried.add(repr(now))
        unseen -= changed
        if _source(twin, specialise)[0] != source:
            numbers = [path for path in sorted(changed) if isinstance(now[path], float)]
            if numbers:
                raise Refusal(f"resets draw {numbers[0]} for the whole batch from a continuous range")
            return True
    return False
