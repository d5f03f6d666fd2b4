"""The kernels on a GPU itself: each step compared with the simulator there, what it takes of the chip, its gradients.

`envs.validation.cuda` is the same for machines without one.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from envs.kernel.backends.cuda.driver import NvidiaDriver, cuda_driver
from envs.kernel.compile import Compiled, compiled
from envs.kernel.compile_gradient import compiled_gradient
from envs.kernel.tracing.trace import TRACED, drawn_values, refusing, reset_as_drawn
from envs.kernel.verification.verify import Comparison
from envs.vmas.world import VmasWorld
from marl.native import library_cache as cache

STEPS = 12  # compared, of 127 environments each
AGAIN = 4  # steps from one reset to the next, every other with bodies pushed together


def compare_step(scenario: str, device: str, steps: int = STEPS) -> dict[str, Any]:
    """How a scenario's kernel on `device` compares with the simulator on `device`, step by step.

    Returns {"why": …} where there is no kernel, else `Compiled.facts`, "report" (`verify.Report` of these steps),
    "difference" (one sentence where it is astray in more than one of a thousand environments) and `resources`.
    """
    world = VmasWorld(scenario, num_envs=TRACED, pool_size=64, device=device)
    compilation = compiled(world)
    if compilation.varies:  # one kernel for each value that resets draw for the whole batch; here, the first
        compilation = compiled(world, drawn=drawn_values(world.pool))
    if compilation.why:
        return {"why": compilation.why}
    comparison = Comparison(world, compilation.step(TRACED), compilation.unrolled)
    varies = {path for path, _ in compilation.places.fields} - {path for path, _ in compilation.constants}
    for i in range(steps):
        if i % AGAIN == 0:
            reset_as_drawn(world)
            if i // AGAIN % 2:
                _push_together(world, varies, comparison.generator)
        with refusing(scenario):
            comparison.step(world.random_action(comparison.generator))
    report = {"report": asdict(comparison.report), "difference": comparison.difference()}
    return {"why": "", **compilation.facts, **report, **resources(compilation)}


def _push_together(world: VmasWorld, varies: set[str], generator: torch.Generator) -> None:
    """A third of the environments, so that bodies touch."""
    near = torch.rand(world.num_envs, generator=generator) < 0.34
    factor = torch.where(near, torch.rand(world.num_envs, generator=generator), 1.0).view(-1, 1).to(world.device)
    for path, slot in world.pool.main.tensors.items():
        if path.endswith("_state._pos") and path in varies:
            slot.write(slot.value * factor)


def resources(compilation: Compiled) -> dict[str, int]:
    """Registers of a thread and bytes of its own memory (stack and spills), as the driver says; {} where none is."""
    driver, device = cuda_driver(), torch.device(compilation.device)
    if device.type != "cuda" or not isinstance(driver, NvidiaDriver):
        return {}
    from cuda.bindings import driver as calls

    kernel = driver.load(cache.cache_folder() / compilation.binary, "environment_step", device)
    asked = calls.CUfunction_attribute
    names = {"registers": asked.CU_FUNC_ATTRIBUTE_NUM_REGS, "local_bytes": asked.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES}
    return {name: int(calls.cuFuncGetAttribute(attribute, kernel)[1]) for name, attribute in names.items()}


def compare_gradient(scenario: str, device: str) -> dict[str, Any]:
    """How a scenario's gradient kernel on `device` compares with differences of the step in double precision.

    Returns {"why": …} where there is none, else `CompiledGradient.facts`: it is verified before its first use.
    """
    world = VmasWorld(scenario, num_envs=TRACED, pool_size=64, device=device)
    compilation = compiled(world)
    drawn = drawn_values(world.pool) if compilation.varies else None
    compilation = compiled(world, drawn=drawn) if compilation.varies else compilation
    found = None if compilation.why else compiled_gradient(world, compilation, drawn)
    why = compilation.why if found is None else found.why
    return {"why": why} if why else {"why": "", **found.facts}
