"""The CUDA kernels without a GPU: each compared with the simulator as C++ on the CPU, and compiled by NVRTC for chips.

    python -m envs.validation.cuda [scenario …] [--chips sm_80 sm_90 sm_120] [--json table.json]

Prints a table: operations of a step, what was compared, and registers, stack and spilled bytes of a thread and seconds
of this process's CPU time for every chip.
"""

import argparse
import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.backends.cuda import compiler as cuda_compiler
from envs.kernel.backends.cuda.emulation import compile_emulation
from envs.kernel.backends.cuda.source import emit_cuda
from envs.kernel.ir.layout import Layout, layout
from envs.kernel.ir.lowered_step import Lowered, lower
from envs.kernel.tracing.trace import TRACED, trace
from envs.kernel.verification.verify import Report, verify
from envs.vmas.simulator import scenario_names
from envs.vmas.world import VmasWorld
from marl.core.errors import CannotCompile
from marl.native.compiler import load

CHIPS = ("sm_80", "sm_90", "sm_120")  # A100, H100, RTX 50
LARGEST = 100_000  # operations; the kernels of the CPU have the same limit


def lowered_step(world: VmasWorld) -> tuple[Lowered, Layout, str]:
    """The program of a world's step, where it keeps what, and its CUDA source. Raises CannotCompile.

    world: one of `TRACED` environments.
    """
    lowered = lower(trace(world))
    if lowered.operations > LARGEST:
        raise CannotCompile(f"the step has {lowered.operations} operations per environment, more than {LARGEST}")
    places = layout(lowered, world.spec)
    return lowered, places, emit_cuda(lowered, places)


def emulate(world: VmasWorld, lowered: Lowered, places: Layout, source: str) -> Report:
    """Compares a CUDA source, run on the CPU, with the simulator of `world`. Raises CannotCompile where they differ."""
    library = load(compile_emulation(source))
    kernel = KernelStep(library, places, lowered.constants, lowered.shapes, lowered.noise, TRACED)
    return verify(world, kernel, lowered.unrolled)


def measure(scenario: str, chips: tuple[str, ...] = CHIPS) -> dict[str, Any]:
    """One row: how a scenario's CUDA kernel compares, and what it takes of every chip."""
    world = VmasWorld(scenario, num_envs=TRACED, pool_size=64)
    row: dict[str, Any] = {"scenario": scenario, "why": ""}
    try:
        lowered, places, source = lowered_step(world)
        row |= {"operations": lowered.operations, **asdict(emulate(world, lowered, places, source))}
        for chip in chips:
            start = time.process_time()
            binary, log = cuda_compiler.build(source, chip)
            seconds = time.process_time() - start
            row[chip] = {**asdict(cuda_compiler.resources(log)), "seconds": seconds, "bytes": len(binary)}
    except CannotCompile as refusal:
        row["why"] = str(refusal)
    return row


def table(rows: list[dict[str, Any]], chips: tuple[str, ...]) -> str:
    """Markdown."""
    heads = "".join(f" {chip}: registers, stack, spilled, s |" for chip in chips)
    lines = [
        f"| scenario | operations | compared | astray | largest relative error |{heads}",
        "|---|---|---|---|---|" + "---|" * len(chips),
    ]
    for row in rows:
        if row["why"]:
            lines.append(f"| {row['scenario']} | — | | | {row['why']} |" + " |" * len(chips))
            continue
        cells = [
            f"{row[c]['registers']}, {row[c]['stack']:,}, {row[c]['spilled']}, {row[c]['seconds']:.1f}" for c in chips
        ]
        worst = max(row["worst"].values(), default=0.0)
        lines.append(
            f"| {row['scenario']} | {row['operations']:,} | {row['compared']:,} | {row['astray']} | "
            f"{worst:.0e} | {' | '.join([*cells, ''])}".rstrip()
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*")
    parser.add_argument("--chips", nargs="*", default=CHIPS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    chips = tuple(options.chips)
    if chips and (reason := cuda_compiler.why_not()):
        print(f"Compared on the CPU only: {reason}.")
        chips = ()
    rows = []
    for scenario in options.scenarios or scenario_names():
        rows.append(measure(scenario, chips))
        print(json.dumps(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    print(table(rows, chips))


if __name__ == "__main__":
    main()
