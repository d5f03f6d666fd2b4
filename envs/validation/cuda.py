"""The CUDA kernels without a GPU: each compared with the simulator as C++ on the CPU, and compiled by NVRTC for chips.

    python -m envs.validation.cuda [scenario …] [--gradients] [--chips sm_80 sm_90 sm_120] [--page docs/kernels.md]

Prints a table: operations of a step, what was compared, and registers, stack and spilled bytes of a thread and seconds
of this process's CPU time for every chip. --gradients: a table of the gradients' kernels instead, which are compared
with differences of the step.
"""

import argparse
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.base import EnvError
from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.backends.cuda import compiler as cuda_compiler
from envs.kernel.backends.cuda.emulation import compile_emulation
from envs.kernel.backends.cuda.gradient import emit_cuda_gradient
from envs.kernel.backends.cuda.source import emit_cuda
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.compile import ScenarioState
from envs.kernel.ir.gradient import differentiate
from envs.kernel.ir.gradient_layout import gradient_layout
from envs.kernel.ir.layout import Layout, layout
from envs.kernel.ir.lowered_step import Lowered, lower
from envs.kernel.tracing.trace import TRACED, drawn_values, set_drawn, trace
from envs.kernel.verification.differences import verify_gradient
from envs.kernel.verification.verify import Report, verify
from envs.validation.kernel_coverage import settings_of
from envs.validation.pages import replace_rows
from envs.vmas.env import VmasEnv
from envs.vmas.simulator import scenario_names
from envs.vmas.world import VmasWorld
from marl.core.errors import CannotCompile
from marl.native.compiler import load

CHIPS = ("sm_80", "sm_90", "sm_120")  # A100, H100, RTX 50
LARGEST = 100_000  # operations; the kernels of the CPU have the same limit


def template_of(scenario: str, scenario_kwargs: Mapping[str, Any] | None = None) -> VmasWorld:
    """A world of `TRACED` environments to trace a scenario in, as `compile.compiled` has it; what resets draw is fixed.

    scenario_kwargs: instead of those of `settings_of`. Raises CannotCompile.
    """
    settings = settings_of(scenario)
    if scenario_kwargs is not None:
        settings["scenario_kwargs"] = dict(scenario_kwargs)
    world = VmasEnv(**settings, num_envs=2, fast="off").world
    template = world.template(TRACED, pool_size=64)
    ScenarioState(world).hand_to(template, world)
    set_drawn(template.pool, drawn_values(world.pool))
    return template


def lowered_step(world: VmasWorld) -> tuple[Lowered, Layout, str]:
    """The program of a world's step, where it keeps what, and its CUDA source. Raises CannotCompile.

    world: one of `TRACED` environments.
    """
    lowered = lower(trace(world))
    if lowered.operations > LARGEST:
        raise CannotCompile(f"the step has {lowered.operations} operations per environment, more than {LARGEST}")
    places = layout(lowered, world.spec)
    return lowered, places, emit_cuda(lowered, places)


def emulated_step(lowered: Lowered, places: Layout, source: str) -> KernelStep:
    """A CUDA source of a step, run on the CPU. Raises CannotCompile."""
    library = load(compile_emulation(source))
    return KernelStep(library, places, lowered.constants, lowered.shapes, lowered.noise, TRACED)


def emulate(world: VmasWorld, lowered: Lowered, places: Layout, source: str) -> Report:
    """Compares a CUDA source, run on the CPU, with the simulator of `world`. Raises CannotCompile where they differ."""
    return verify(world, emulated_step(lowered, places, source), lowered.unrolled)


def measure(
    scenario: str,
    chips: tuple[str, ...] = CHIPS,
    gradients: bool = False,
    scenario_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One row: how a scenario's CUDA kernel, or that of its gradients, compares, and what it takes of every chip."""
    row: dict[str, Any] = {"scenario": scenario, "why": ""}
    try:
        world = template_of(scenario, scenario_kwargs)
        lowered, places, source = lowered_step(world)
        if gradients:
            step, gradient = emulated_step(lowered, places, source), differentiate(lowered)
            of_gradients = gradient_layout(gradient, places)
            source = emit_cuda_gradient(gradient, of_gradients)
            kernel = GradientKernel(load(compile_emulation(source)), of_gradients, TRACED)
            report = verify_gradient(world, gradient, step, kernel).facts()
            row |= {"operations": gradient.operations, **report, "worst": {"gradients": report["worst"]}}
        else:
            row |= {"operations": lowered.operations, **asdict(emulate(world, lowered, places, source))}
        for chip in chips:
            start = time.process_time()
            binary, log = cuda_compiler.build(source, chip)
            seconds = time.process_time() - start
            row[chip] = {**asdict(cuda_compiler.resources(log)), "seconds": seconds, "bytes": len(binary)}
    except (CannotCompile, EnvError) as refusal:
        row["why"] = str(refusal)
    return row


def table(rows: list[dict[str, Any]], chips: tuple[str, ...], gradients: bool = False) -> str:
    """Markdown."""
    heads = "".join(f" {chip}: registers, stack, spilled, s |" for chip in chips)
    kind = "operations of the gradients" if gradients else "operations"
    lines = [
        f"| scenario | {kind} | compared | astray | largest relative error |{heads}",
        "|---|---|---|---|---|" + "---|" * len(chips),
    ]
    for row in rows:
        if row["why"]:
            lines.append(f"| {row['scenario']} | — | | | {row['why']} |" + " |" * len(chips))
            continue
        takes = [row.get(chip) for chip in chips]  # none where it was compared only
        cells = [f"{t['registers']}, {t['stack']:,}, {t['spilled']}, {t['seconds']:.1f}" if t else "—" for t in takes]
        worst = max(row["worst"].values(), default=0.0)
        lines.append(
            f"| {row['scenario']} | {row['operations']:,} | {row['compared']:,} | {row['astray']} | "
            f"{worst:.0e} | {' | '.join([*cells, ''])}".rstrip()
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", help="all of VMAS's where none is named")
    parser.add_argument("--gradients", action="store_true", help="the kernels of gradients instead of the steps'")
    parser.add_argument("--chips", nargs="*", default=CHIPS, help="none: compared only")
    parser.add_argument("--json", type=Path, help="a file for the rows, written from scratch")
    parser.add_argument("--page", type=Path, help="a page whose table's rows of these scenarios are replaced")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    chips = tuple(options.chips)
    if chips and (reason := cuda_compiler.why_not()):
        print(f"Compared on the CPU only: {reason}.")
        chips = ()
    rows = []
    for scenario in options.scenarios or scenario_names():
        rows.append(measure(scenario, chips, options.gradients))
        print(json.dumps(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
        if options.page:  # row by row: what was measured stays if the rest is interrupted
            options.page.write_text(replace_rows(options.page.read_text(), table(rows[-1:], chips, options.gradients)))
    print(table(rows, chips, options.gradients))


if __name__ == "__main__":
    main()
