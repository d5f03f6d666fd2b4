"""Cross-compiles sources for 64-bit Arm and runs them here: Debian's cross compilers, and qemu as the processor."""

import functools
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from marl.core.errors import CannotCompile
from marl.native.arm.emulated_library import EmulatedLibrary
from marl.native.compiler import DIALECT, FLAGS, SIMD

ROOT = Path("/usr/aarch64-linux-gnu")  # where Debian and Ubuntu put Arm's libraries
SERVER = Path(__file__).with_name("call_server.cpp")
PACKAGES = "apt-get install g++-aarch64-linux-gnu qemu-user-static"
COMPILERS = {  # the program, its own flags, and what makes OpenMP
    "gcc": ("aarch64-linux-gnu-g++", [], ["-fopenmp"]),
    "clang": ("clang++", ["--target=aarch64-linux-gnu"], []),
    "apple": ("clang++", ["--target=aarch64-linux-gnu", "-mcpu=apple-m1"], []),
}
PATIENCE = 900.0  # seconds for one run of the compiler


def why_not(kind: str = "gcc") -> str:
    """What is missing for a compiler of `COMPILERS`, or ""."""
    program = COMPILERS[kind][0]
    missing = [name for name in (program, COMPILERS["gcc"][0]) if not shutil.which(name)]
    if missing or _emulator() is None:
        what = missing[0] if missing else "qemu-aarch64"
        return f"{what} is not installed ({PACKAGES}{'' if kind == 'gcc' else ' clang'})"
    return ""


def _emulator() -> str | None:
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


def cpu_seconds() -> float:
    """CPU time of this process and of those it has waited for: times of a busy machine can be compared too."""
    ours, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return ours.ru_utime + ours.ru_stime + theirs.ru_utime + theirs.ru_stime


def compile_for_arm(
    sources: Sequence[str], target: Path, options: Sequence[str] = FLAGS, kind: str = "gcc", more: Sequence[str] = ()
) -> float:
    """Writes a library of some sources to `target`; seconds of CPU time. more: further options.

    Raises CannotCompile with the compiler's first error.
    """
    program, own, openmp = COMPILERS[kind]
    start = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        codes = [Path(folder) / f"source{i}.cpp" for i in range(len(sources))]
        for code, source in zip(codes, sources, strict=True):
            code.write_text(source)
        command = [
            program,
            *own,
            DIALECT,
            *options,
            f"-I{SIMD.parent}",
            *map(str, codes),
            "-o",
            str(target),
            *openmp,
            *more,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode or done.stderr:
        lines = done.stderr.splitlines() or ["silent"]
        said = next((line for line in lines if "error" in line), lines[0])
        raise CannotCompile(f"{program} failed: {said[:300]}")
    return cpu_seconds() - start


@functools.lru_cache(maxsize=1)
def _server() -> tuple[tempfile.TemporaryDirectory, Path]:
    """The call server's program, in a folder that lasts as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="marl_arm_")
    program = Path(folder.name) / "call_server"
    compile_for_arm([SERVER.read_text()], program, ("-O1", "-static-libstdc++", "-static-libgcc"), more=["-ldl"])
    return folder, program


@contextmanager
def emulated(library: Path) -> Iterator[EmulatedLibrary]:
    """A library for Arm, called within the block. Raises CannotCompile where the emulator is missing."""
    emulator = _emulator()
    if emulator is None or why_not():
        raise CannotCompile(why_not())
    with EmulatedLibrary(library, [emulator, "-cpu", "max", "-L", str(ROOT), str(_server()[1])]) as called:
        yield called
