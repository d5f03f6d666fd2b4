"""From an environment's settings to a verified, compiled kernel, or to one sentence that says why there is none."""

import functools
import importlib.metadata
import io
import json
import platform
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.ir.layout import Layout, layout
from envs.kernel.ir.lowered_step import Lowered, lower
from envs.kernel.targets import Target, target_of
from envs.kernel.tracing.tape import ConstantChanged, Refusal
from envs.kernel.tracing.trace import TRACED, Trace, drawn_values, set_drawn, trace
from envs.kernel.verification.audit import describe, python_state
from envs.kernel.verification.branches import check_branches, check_late_branches, is_own
from envs.kernel.verification.verify import verify
from envs.python_state.state import SIZE
from envs.python_state.tokens import TooMuchState
from envs.vmas.one_scenario import follows, like
from envs.vmas.warm_up import is_clock
from envs.vmas.world import VmasWorld
from marl.core.errors import CannotCompile
from marl.native import compiler as toolchain
from marl.native import library_cache as cache
from marl.native.compiler import PATIENCE, digest

RESETS = 40  # tried to see every value that is drawn for the whole batch change
CONTINUOUS = 8  # resets in a row that draw as many different numbers: no choice among a few
PACKAGE = Path(envs.__file__).resolve().parent
LARGEST = 100_000  # operations; beyond, compilers take minutes


@dataclass
class Compiled:
    """A kernel on disk and what is needed to call it; `why` is set, and all else empty, where there can't be one.

    varies: the step depends on what resets draw for the whole batch: ask again with one choice, settings["drawn"].
    seldom: a state that looked constant is not: ask again for a kernel without constants.
    """

    why: str = ""
    varies: bool = False
    seldom: bool = False
    binary: str = ""
    places: Layout | None = None
    constants: dict[tuple[str, int], float] = field(default_factory=dict)
    shapes: dict[str, tuple] = field(default_factory=dict)
    noise: list[tuple] = field(default_factory=list)
    dtypes: dict[tuple, torch.dtype] = field(default_factory=dict)  # of the outputs, in the simulator
    unrolled: bool = False  # whether it draws where the simulator draws another number of times
    facts: dict[str, Any] = field(default_factory=dict)  # operations, seconds, errors: for reports
    device: str = "cpu"  # whose environments it steps

    def step(self, num_envs: int, threads: int = 1) -> KernelStep:
        """The kernel for a number of environments, on its device."""
        target = target_of(torch.device(self.device))
        return target.step(self.binary, self.places, self.constants, self.shapes, self.noise, num_envs, threads)


def compiled(world: VmasWorld, specialise: bool = True, drawn: dict[str, Any] | None = None) -> Compiled:
    """The kernel of a world as it is now, from the cache on disk or made now.

    drawn: what its resets drew for the whole batch, where that decides the step. Never raises for what can't become a
    kernel: `why` says it in one sentence.
    """
    try:
        compilation = _compiled(world, specialise, drawn)
        compilation = _compiled(world, False, drawn) if compilation.seldom else compilation
        compilation.device = str(world.device)
        return compilation
    except CannotCompile as refusal:
        return Compiled(why=str(refusal))
    except Exception as error:  # a scenario may raise anything when it is built, reset or stepped another way
        frame = traceback.extract_tb(error.__traceback__)[-1]
        message = " ".join(str(error).split())[:200] or "no message"
        place = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        return Compiled(why=f"making its kernel raised {type(error).__name__} at {place}: {message}")


def _compiled(world: VmasWorld, specialise: bool, drawn: dict[str, Any] | None) -> Compiled:
    state = ScenarioState(world)
    key = key_of(world, state, specialise, drawn)
    cached = _kept(key)
    if cached is not None:
        return cached
    with cache.building(key, ".pt", PATIENCE):  # another process may be making the same
        cached = _kept(key)
        if cached is not None:
            return cached
        try:
            compilation = _make(world, state, specialise, drawn)
        except ConstantChanged:  # resets that gave one value while it was traced: a seldom draw, seen in time
            compilation = Compiled(seldom=True)
        except CannotCompile as refusal:
            compilation = Compiled(why=str(refusal))
        content = io.BytesIO()
        torch.save(asdict(compilation), content)  # plain values only: reading it back runs no code
        cache.keep(content.getvalue(), key, ".pt")
    return compilation


def _kept(key: str) -> Compiled | None:
    """The kernel of that key on disk, if it is whole and its library is."""
    file = cache.find(key, ".pt")
    if file is None:
        return None
    content = torch.load(file, weights_only=True)
    places = Layout(**content.pop("places")) if content["places"] else content.pop("places")
    cached = Compiled(**content, places=places)
    whole = cached.why or cached.varies or cached.seldom or cache.intact(cache.cache_folder() / cached.binary)
    return cached if whole else None


class ScenarioState:
    """The Python state of an environment's scenario that decides its step, whatever the number of environments.

    What differs between simulator and reset pool as their sizes do is left out, and what resets draw. What was set on
    the simulator alone is not.
    Raises Refusal where there is too much of it.
    """

    def __init__(self, world: VmasWorld) -> None:
        pool = world.pool
        pool.main.refresh()
        try:
            self.state = python_state(world.simulator, pool.main)
            other = python_state(pool.fresh_simulator, pool.fresh)
        except TooMuchState as error:
            raise Refusal(f"the scenario cannot be watched: {error}") from error
        sizes = {
            p.removesuffix(SIZE)
            for p in self.state.changes(other)
            if _by_size(self.state.tokens.get(p), other.tokens.get(p), pool.num_envs, pool.size)
        }
        clocks = {p for p, slot in pool.main.host.items() if is_clock(slot.value)}
        self.left_out = _all_below(self.state.tokens.keys() | other.tokens.keys(), sizes | clocks | pool.drawn)
        self.shared = {
            path: slot.value.cpu()
            for path, slot in pool.main.tensors.items()
            if pool.axes.get(path) is None
            and path not in pool.evolving | pool.passing | pool.drawn
            and slot.value.shape == getattr(pool.fresh.tensors.get(path), "value", slot.value).shape
        }

    def digest(self) -> str:
        """One name for all of it."""
        numbers = [(p, str(v.dtype), tuple(v.shape), v.detach().cpu().tolist()) for p, v in self.shared.items()]
        return digest(self.state.digest(self.left_out), numbers)

    def hand_to(self, template: VmasWorld, world: VmasWorld) -> None:
        """Gives another environment of the scenario the same values. Raises Refusal, naming what stays different."""
        pool = template.pool
        values = world.pool.main.host_values()
        differing = {start for path in self.left_out for start in _starts(path)}
        values = {p: v for p, v in values.items() if p not in differing and not world.pool.scenario.follows_size(p)}
        for state in (pool.main, pool.fresh):
            state.write_host(values)
            for path, value in self.shared.items():
                slot = state.tensors.get(path)
                if slot is not None and slot.value.shape == value.shape and not torch.equal(slot.value, value):
                    slot.write(like(slot.value, value))
        other = ScenarioState(template)
        left_out = self.left_out | other.left_out
        for path in self.state.changes(other.state):
            if path not in left_out and not path.endswith(SIZE):
                raise Refusal(f"another copy of the scenario differs in {describe(path, self.state.codes)}")


def _all_below(paths: Iterable[str], roots: set[str]) -> set[str]:
    """Those of the paths that are one of the roots, or of what lies below one."""
    below = tuple(f"{root}." for root in roots)
    return {path for path in paths if path in roots or path.startswith(below)}


def _starts(path: str) -> list[str]:
    return [path[:i] for i in range(len(path) + 1) if path[i : i + 1] in (".", "")]


def _by_size(a: Any, b: Any, num_envs: int, size: int) -> bool:
    """Whether two tokens differ as the numbers of environments do: numbers, shapes and lengths; generators go apart."""
    if not isinstance(a, tuple) or not isinstance(b, tuple) or a[0] != b[0]:
        return isinstance(a, int) and isinstance(b, int)  # of a dict
    if a[0] == "generator":
        return True
    if a[0] in ("int", "float"):
        return follows(float(a[1]), float(b[1]), num_envs, size)
    return len(a) > 1 and not isinstance(a[1], str) and a[1] != b[1]  # a list's length, an array's shape


def key_of(world: VmasWorld, state: ScenarioState, specialise: bool, drawn: dict[str, Any] | None) -> str:
    """Everything that decides a kernel: settings, the scenario as it is, our sources, versions, machine, compiler."""
    settings = json.dumps({**world.settings, "drawn": drawn}, sort_keys=True, default=repr)
    return digest(
        settings,
        specialise,
        state.digest(),
        _sources(),
        torch.__version__,
        np.__version__,
        platform.python_version(),
        importlib.metadata.version("vmas"),
        target_of(world.device).versions(),
    )


@functools.lru_cache(maxsize=1)
def _sources() -> str:
    """All sources of the package that makes and steps kernels, by path, and those of the toolchain."""
    files = sorted(p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".h"))
    return digest(*((str(p.relative_to(PACKAGE)), p.read_text()) for p in files), toolchain.sources())


def _make(world: VmasWorld, state: ScenarioState, specialise: bool, drawn: dict[str, Any] | None) -> Compiled:
    start = time.perf_counter()
    template = world.template(TRACED, pool_size=64)
    state.hand_to(template, world)
    built = time.perf_counter()
    if drawn is not None:
        set_drawn(template.pool, drawn)
    traced = trace(template)
    target = target_of(world.device)
    source, lowered, places = _written(traced, template, specialise, target)
    lowered.unrolled &= is_own(template)
    check_branches(template, traced)
    if drawn is None and _depends_on_draws(template, specialise, traced, source, target):
        return Compiled(varies=True)
    traced_at = time.perf_counter()
    library = target.build(source)
    compiled_at = time.perf_counter()
    compilation = Compiled(
        binary=library.name,
        places=places,
        constants=lowered.constants,
        shapes=lowered.shapes,
        noise=lowered.noise,
        dtypes=lowered.dtypes,
        unrolled=lowered.unrolled,
    )
    compilation.device = str(world.device)
    report = verify(template, compilation.step(TRACED), unrolled=lowered.unrolled)
    check_late_branches(template, traced, compilation.step(TRACED))
    compilation.facts = {
        "operations": lowered.operations,
        "fields": len(lowered.fields),
        "folded": len(lowered.constants),
        "seconds": {
            "template": built - start,
            "trace": traced_at - built,
            "compile": compiled_at - traced_at,
            "verify": time.perf_counter() - compiled_at,
        },
        "worst": report.worst,
        "compared": report.compared,
        "astray": report.astray,
        "flips": report.flips,
    }
    return compilation


def _written(traced: Trace, template: VmasWorld, specialise: bool, target: Target) -> tuple[str, Lowered, Layout]:
    """The source of a trace's kernel, its program, and where it keeps what."""
    lowered = lower(traced, specialise)
    if lowered.operations > LARGEST:
        raise Refusal(f"the step has {lowered.operations} operations per environment, more than {LARGEST}")
    places = layout(lowered, template.spec)
    return target.emit(lowered, places), lowered, places


def _is_continuous(template: VmasWorld, path: str) -> bool:
    """Whether what resets draw are numbers that never come twice."""
    seen = set()
    for _ in range(CONTINUOUS):
        template.reset()
        seen.add(repr(drawn_values(template.pool).get(path)))
    return len(seen) == CONTINUOUS and any("." in text for text in seen)


def _depends_on_draws(template: VmasWorld, specialise: bool, traced: Trace, source: str, target: Target) -> bool:
    """Whether the program changes with what resets draw for the whole batch: tried until each value has changed."""
    first = drawn_values(template.pool)
    if not first:
        return False
    known = {traced.fingerprint()}  # of traces that give this program: writing it again takes longest
    unseen, tried = set(first), {repr(first)}
    for _ in range(RESETS):
        if not unseen:
            break
        template.reset()
        now = drawn_values(template.pool)
        changed = {path for path in first if now.get(path) != first[path]}
        if repr(now) in tried or not changed & unseen:
            continue
        tried.add(repr(now))
        unseen -= changed
        again = trace(template, audited=False)
        fingerprint = again.fingerprint()
        if fingerprint not in known and _written(again, template, specialise, target)[0] != source:
            numbers = [path for path in sorted(changed) if _is_continuous(template, path)]
            if numbers:
                raise Refusal(f"resets draw {numbers[0]} for the whole batch from a continuous range")
            return True
        known.add(fingerprint)
    return False
