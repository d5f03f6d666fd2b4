"""A policy's C file on a Cortex-M4, without one: cross-compiled, run by qemu, its sizes and instructions reported.

    python -m agents.deploy.c_code.cortex_m RUN_DIR [--weights float32|int8] [--steps 100]

Prints bytes of code, of constants (weights), of data and of stack, instructions per decision of an agent of each group,
and how the actions differ from the policy's. qemu counts instructions, not cycles. These are estimated at `CYCLES` for
each, as in the loop that most of them are from: of its 20 instructions eight load (two cycles each), the branch takes
three, the others one (Arm, Cortex-M4 Technical Reference Manual, 3.3 and 7.2.3), 30 in all. Flash may add waits.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from agents.deploy.c_code import check
from agents.deploy.c_code.files import rounded, write
from agents.deploy.c_code.library import FLAGS
from agents.deploy.c_code.writer import CWriter, Weights
from agents.policies.policy import Policy
from marl.core.errors import CannotCompile
from marl.launch import cli

HERE = Path(__file__).parent
COMPILER, SIZE, EMULATOR = "arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm"
PACKAGES = "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
CHIP = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
BOARD = (
    *("-M", "mps2-an386", "-display", "none", "-serial", "none", "-monitor", "none"),
    *("-semihosting-config", "enable=on,target=native", "-icount", "shift=0"),
)
CYCLES = 1.5  # of an instruction, on average
PATIENCE = 600  # seconds for one run of the emulator


@dataclass
class Report:
    """Of one policy: bytes, instructions of one agent's decision by group, and the differences of `check.compare`."""

    code: int
    constants: int
    data: int
    stack: dict[str, int]
    instructions: dict[str, int]
    worst: float
    other: int
    count: int


def why_not() -> str:
    """What is missing here, or ""."""
    missing = [name for name in (COMPILER, SIZE, EMULATOR) if not shutil.which(name)]
    return f"{missing[0]} is not installed ({PACKAGES})" if missing else ""


def measure(
    policy: Policy,
    folder: Path,
    observations: Mapping[str, Tensor],
    masks: Mapping[str, Tensor] | None = None,
    weights: Weights = "float32",
) -> Report:
    """Builds a policy for the chip in `folder` and runs it on observations, as `check.recorded` returns them.

    Raises CannotCompile where a program is missing or fails, UserError for networks that can't be written.
    """
    if reason := why_not():
        raise CannotCompile(reason)
    source = write(policy, folder, weights)
    part, whole = folder / "policy.o", folder / "policy_main.o"
    compiled = [COMPILER, *CHIP, *FLAGS, "-c", str(source)]
    _called([*compiled, "-o", str(part)])
    _called([*compiled, "-DPOLICY_MAIN", "-Dmain=policy_main", "-o", str(whole)])
    sizes = {
        name: int(size) for name, size in re.findall(r"^(\.\w+)\S*\s+(\d+)", _called([SIZE, "-A", str(part)]), re.M)
    }
    text = check.as_text(observations, masks)
    like = rounded(policy) if weights == "int8" else policy
    stack, instructions, found = {}, {}, (0.0, 0, 0)
    for group in CWriter(policy, weights).groups:
        arguments = ["0", "observation"] + (["memory"] if group.memory else []) + (["0"] if group.choices else [])
        call = f"policy_{group.name}({', '.join(arguments)}, ({group.kind} *)action)"
        program = folder / f"{group.name}.elf"
        board = ["-std=gnu99", "-O1", f"-DPOLICY_CALL={call}", f"-I{folder}", str(HERE / "board.c"), str(whole)]
        link = ["-nostartfiles", "--specs=rdimon.specs", f"-T{HERE / 'board.ld'}", "-lm"]
        _called([COMPILER, *CHIP, *board, "-o", str(program), *link])
        done = check.run(["timeout", str(PATIENCE), EMULATOR, *BOARD, "-kernel", str(program)], text)
        measured = re.search(r"stack (\d+) instructions (\d+)", done.stderr)
        if measured is None:
            raise CannotCompile(f"{EMULATOR} printed {done.stderr[:200]!r} instead of figures")
        stack[group.name], instructions[group.name] = int(measured[1]), int(measured[2])
        found = check.compare(like, check.printed_actions(policy, done.stdout), observations, masks)
    data = sizes.get(".data", 0) + sizes.get(".bss", 0)
    return Report(sizes.get(".text", 0), sizes.get(".rodata", 0), data, stack, instructions, *found)


def _called(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotCompile(f"{command[0]} failed: {done.stderr.strip()[:1000]}")
    return done.stdout


def table(report: Report) -> str:
    """Markdown."""
    lines = [
        "| group | code, bytes | constants, bytes | data, bytes | stack, bytes | instructions | cycles, about |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, instructions in report.instructions.items():
        lines.append(
            f"| {name} | {report.code:,} | {report.constants:,} | {report.data:,} | {report.stack[name]:,} | "
            f"{instructions:,} | {instructions * CYCLES:,.0f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ckpt", help="as scripts/export.py takes it")
    parser.add_argument("--weights", choices=("float32", "int8"), default="float32")
    parser.add_argument("--steps", type=int, default=100, help="observations of every agent that the board acts on")
    options = parser.parse_args(arguments)
    if reason := why_not():
        parser.error(reason)
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: must be at least 1")
    with cli.guard(), tempfile.TemporaryDirectory() as folder:
        policy = Policy.load(options.ckpt)
        observations, masks = check.recorded(policy, options.steps)
        report = measure(policy, Path(folder), observations, masks, options.weights)
    print(table(report))
    print(
        f"{report.count:,} actions: largest relative difference {report.worst:.1e}, {report.other} other choices. "
        "Code, constants and data are of all groups together, without the C library's own functions."
    )


if __name__ == "__main__":
    main()
