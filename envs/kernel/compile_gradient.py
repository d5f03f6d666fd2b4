"""From a compiled step to the verified, compiled kernel of its gradients, or to one sentence that says why not."""

import io
import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.compile import Compiled, ScenarioState, key_of
from envs.kernel.ir.gradient import differentiate
from envs.kernel.ir.gradient_layout import GradientLayout, gradient_layout
from envs.kernel.ir.lowered_step import lower
from envs.kernel.targets import target_of
from envs.kernel.tracing.tape import ConstantChanged, Refusal
from envs.kernel.tracing.trace import TRACED, set_drawn, trace
from envs.kernel.verification.differences import verify_gradient
from envs.vmas.world import VmasWorld
from marl.core.errors import CannotCompile
from marl.native import library_cache as cache
from marl.native.compiler import PATIENCE, digest

LARGEST = 300_000  # operations of a gradient program; beyond, compilers take minutes


@dataclass
class CompiledGradient:
    """A gradient kernel on disk; `why` is set, and all else empty, where there can't be one."""

    why: str = ""
    binary: str = ""
    places: GradientLayout | None = None
    facts: dict[str, Any] = field(default_factory=dict)  # operations, seconds, errors: for reports
    device: str = "cpu"  # whose environments it is for

    def kernel(self, num_envs: int, threads: int = 1) -> GradientKernel:
        """The kernel for a number of environments, on its device."""
        return target_of(torch.device(self.device)).gradient(self.binary, self.places, num_envs, threads)


def compiled_gradient(world: VmasWorld, compilation: Compiled, drawn: dict[str, Any] | None = None) -> CompiledGradient:
    """The gradients of a compiled step of `world`, from the cache on disk or made now; `why` says why there are none.

    drawn: as for `compiled`. The step is traced again, in a template of its own, and must give the same program.
    """
    try:
        state = ScenarioState(world)
        key = digest("gradient", key_of(world, state, bool(compilation.constants), drawn), compilation.binary)
        found = _kept(key) or _kept_or_made(key, world, state, compilation, drawn)
        found.device = str(world.device)
        return found
    except CannotCompile as error:
        return CompiledGradient(why=str(error))


def _kept_or_made(key: str, *of: Any) -> CompiledGradient:
    with cache.building(key, ".pt", PATIENCE):  # another process may be making the same
        found = _kept(key)
        if found is None:
            found = _make(*of)
            content = io.BytesIO()
            torch.save(asdict(found), content)  # plain values only: reading it back runs no code
            cache.keep(content.getvalue(), key, ".pt")
    return found


def _kept(key: str) -> CompiledGradient | None:
    file = cache.find(key, ".pt")
    if file is None:
        return None
    content = torch.load(file, weights_only=True)
    places = content.pop("places")
    found = CompiledGradient(**content, places=GradientLayout(**places) if places else None)
    return found if found.why or cache.intact(cache.cache_folder() / found.binary) else None


def _make(
    world: VmasWorld, state: ScenarioState, compilation: Compiled, drawn: dict[str, Any] | None
) -> CompiledGradient:
    start = time.perf_counter()
    try:
        template = world.template(TRACED, pool_size=64)
        state.hand_to(template, world)
        if drawn is not None:
            set_drawn(template.pool, drawn)
        lowered = lower(trace(template, audited=False), bool(compilation.constants))
        places = compilation.places
        if (lowered.fields, repr(lowered.constants)) != (places.fields, repr(compilation.constants)):
            raise Refusal("tracing the step again gave another program")
        gradient = differentiate(lowered)
        if gradient.operations > LARGEST:
            raise Refusal(f"its gradients have {gradient.operations} operations per environment, more than {LARGEST}")
        layout = gradient_layout(gradient, places)
        target = target_of(world.device)
        sources = target.emit_gradient(gradient, layout)
        written = time.perf_counter()
        spent = _compilers()
        library = target.build_gradient(sources)
        built, spent = time.perf_counter(), _compilers() - spent
        found = CompiledGradient(binary=library.name, places=layout, device=str(world.device))
        report = verify_gradient(template, gradient, compilation.step(TRACED), found.kernel(TRACED))
    except ConstantChanged as changed:
        return CompiledGradient(why=str(changed))
    except CannotCompile as refusal:
        return CompiledGradient(why=str(refusal))
    found.facts = {
        "operations": gradient.operations,
        "seconds": {
            "trace": written - start,
            "compile": built - written,
            "compilers": spent,
            "verify": time.perf_counter() - built,
        },
        **report.facts(),
    }
    return found


def _compilers() -> float:
    """Processor time of all programs that this one started and saw end, in seconds."""
    times = os.times()
    return times.children_user + times.children_system
