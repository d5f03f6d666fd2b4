"""The CPU's kernels on 64-bit Arm, without such a machine: cross-compiled, emulated, compared with the simulator here.

    python -m envs.validation.arm [scenario …] [--gradients] [--compiler gcc|clang|apple] [--page docs/kernels.md]

The simulator plays in this process as in `verify`. The kernel, from the very source that an Arm machine would compile,
answers from qemu's processor (`marl.native.arm`). --gradients: the kernels of gradients, which are compared with
differences of the step, itself on Arm. --compiler: apple is clang for Apple's M1, whose processor is not emulated.
`python -m agents.fused_ops.on_arm` does the same with networks, losses and optimisers.
"""

import argparse
import json
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.base import EnvError
from envs.kernel.backends.cpp import emit
from envs.kernel.backends.cpp_gradient import emit_gradient
from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.ir.gradient import differentiate
from envs.kernel.ir.gradient_layout import gradient_layout
from envs.kernel.targets import LONG
from envs.kernel.tracing.trace import TRACED
from envs.kernel.verification.differences import verify_gradient
from envs.kernel.verification.verify import verify
from envs.validation.cuda import lowered_step, template_of
from envs.validation.pages import replace_rows
from envs.vmas.simulator import scenario_names
from marl.core.errors import CannotCompile
from marl.native.arm import cross


def measure(scenario: str, kind: str = "gcc", gradients: bool = False) -> dict[str, Any]:
    """One row: how a scenario's kernel, or that of its gradients, compares on Arm, and what it took.

    kind: of `cross.COMPILERS`. "compile" and "compare" are seconds of CPU time; "why" is set where there is no kernel.
    """
    row: dict[str, Any] = {"scenario": scenario, "why": ""}
    try:
        world = template_of(scenario)
        lowered, places, _ = lowered_step(world)
        with tempfile.TemporaryDirectory() as folder:
            path, other = Path(folder) / "step.so", Path(folder) / "gradient.so"
            seconds = cross.compile_for_arm([emit(lowered, places)], path, kind=kind)
            start = cross.cpu_seconds()
            with cross.emulated(path) as library:
                step = KernelStep(library, places, lowered.constants, lowered.shapes, lowered.noise, TRACED)
                if not gradients:
                    report = asdict(verify(world, step, lowered.unrolled))
                    operations = lowered.operations
                else:
                    gradient = differentiate(lowered)
                    operations, of_gradients = gradient.operations, gradient_layout(gradient, places)
                    sources = emit_gradient(gradient, of_gradients)
                    seconds = cross.compile_for_arm(sources, other, LONG, kind)
                    start = cross.cpu_seconds()
                    with cross.emulated(other) as library_of_gradients:
                        kernel = GradientKernel(library_of_gradients, of_gradients, TRACED)
                        report = verify_gradient(world, gradient, step, kernel).facts()
                    report |= {"worst": {"gradients": report["worst"]}}
        row |= {"operations": operations, **report, "compile": seconds, "compare": cross.cpu_seconds() - start}
    except (CannotCompile, EnvError) as refusal:
        row["why"] = str(refusal)
    return row


def table(rows: list[dict[str, Any]], gradients: bool = False) -> str:
    """Markdown."""
    operations = "operations of the gradients" if gradients else "operations"
    lines = [
        f"| scenario | {operations} | compared on Arm | astray | largest relative error | compile, s | compare, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["why"]:
            lines.append(f"| {row['scenario']} | — | | | {row['why']} | | |")
            continue
        worst = max(row["worst"].values(), default=0.0)
        lines.append(
            f"| {row['scenario']} | {row['operations']:,} | {row['compared']:,} | {row['astray']} | {worst:.0e} | "
            f"{row['compile']:.1f} | {row['compare']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", help="all of VMAS's where none is named")
    parser.add_argument("--gradients", action="store_true", help="the kernels of gradients instead of the steps'")
    parser.add_argument("--compiler", choices=cross.COMPILERS, default="gcc", help="apple: clang for Apple's M1")
    parser.add_argument("--json", type=Path, help="a file for the rows, written from scratch")
    parser.add_argument("--page", type=Path, help="a page whose table's rows of these scenarios are replaced")
    options = parser.parse_args()
    unknown = sorted(set(options.scenarios) - set(scenario_names()))
    if unknown:
        parser.error(f"{unknown[0]!r} is no scenario of VMAS; there are {', '.join(scenario_names())}")
    if reason := cross.why_not(options.compiler):
        parser.error(reason)
    warnings.filterwarnings("ignore")
    rows = []
    for scenario in options.scenarios or scenario_names():
        rows.append(measure(scenario, options.compiler, options.gradients))
        print(json.dumps(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
        if options.page:  # row by row: what was measured stays if the rest is interrupted
            options.page.write_text(replace_rows(options.page.read_text(), table(rows[-1:], options.gradients)))
    print(table(rows, options.gradients))


if __name__ == "__main__":
    main()
