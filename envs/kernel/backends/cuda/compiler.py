"""NVRTC: compiles CUDA sources for a chip, on any machine, keeps the binaries, and reads what ptxas says of them.

NVRTC comes with torch's CUDA wheels, or by `pip install -e .[cuda]`. It needs no GPU, no driver and no toolkit.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

from marl.core.errors import CannotCompile
from marl.native import library_cache as cache
from marl.native.compiler import PATIENCE, digest

# Products and sums round one by one, as the simulator's do; quotients and roots round correctly.
OPTIONS = ("--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false", "--std=c++17", "--ptxas-options=-v")
VERSION = 2  # of what decides a binary beside source, options, chip and NVRTC; raise it to void caches
BOUND = re.compile(r"__launch_bounds__\((\d+), \d+\)")
MISSING = "CUDA kernels need NVRTC, which torch's CUDA wheels or pip install -e '.[cuda]' bring"


@dataclass
class Resources:
    """What a kernel takes of a chip: registers of a thread, bytes of its stack, bytes spilled in all its functions."""

    registers: int
    stack: int
    spilled: int


@functools.lru_cache(maxsize=1)
def _nvrtc():
    """The bindings, their library loaded. Raises CannotCompile."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError) as error:  # pathfinder's own error is a RuntimeError
        raise CannotCompile(f"{MISSING} ({' '.join(str(error).split())[:100]})") from error
    return nvrtc


def why_not() -> str:
    """Why nothing can be compiled here, in one sentence, or ""."""
    try:
        _nvrtc()
    except CannotCompile as error:
        return str(error)
    return ""


def versions() -> str:
    """What decides binaries beside their source and chip. Raises CannotCompile."""
    nvrtc = _nvrtc()
    return f"{VERSION} nvrtc {nvrtc.nvrtcVersion()[1:]} {OPTIONS}"


def architectures() -> list[str]:
    """The chips that NVRTC knows, "sm_80" and so on. Raises CannotCompile."""
    return [f"sm_{number}" for number in _nvrtc().nvrtcGetSupportedArchs()[1]]


def compile_cuda(source: str, architecture: str) -> Path:
    """The binary of a source for a chip ("sm_90"), from disk if it was built before. Raises CannotCompile."""
    key = digest("cuda", versions(), architecture, source)
    try:
        target = cache.find(key, ".cubin")
        if target is None:
            with cache.building(key, ".cubin", PATIENCE):
                target = cache.find(key, ".cubin") or cache.keep(build(source, architecture)[0], key, ".cubin")
    except OSError as error:
        raise CannotCompile(f"no kernel could be written: {error.strerror or error}") from error
    return target


def build(source: str, architecture: str) -> tuple[bytes, str]:
    """(binary, what ptxas said) of a source for a chip. Raises CannotCompile, with NVRTC's first words.

    The source bounds a thread's registers, so that several blocks fit. Where that makes it spill, it is compiled again
    with room for one block, and kept so if that spills less.
    """
    found = _compiled(source, architecture)
    freed = BOUND.sub(r"__launch_bounds__(\1, 1)", source)
    if not _spilled(found[1]) or freed == source:
        return found
    return min(found, _compiled(freed, architecture), key=lambda pair: _spilled(pair[1]))


def _compiled(source: str, architecture: str) -> tuple[bytes, str]:
    nvrtc = _nvrtc()
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    try:
        options = [f"--gpu-architecture={architecture}".encode(), *(option.encode() for option in OPTIONS)]
        status = nvrtc.nvrtcCompileProgram(program, len(options), options)[0]
        log = bytes(nvrtc.nvrtcGetProgramLogSize(program)[1])
        nvrtc.nvrtcGetProgramLog(program, log)
        text = log.decode(errors="replace").rstrip("\0")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CannotCompile(f"NVRTC failed for {architecture}: {_first_line(text) or status.name}")
        binary = bytes(nvrtc.nvrtcGetCUBINSize(program)[1])
        nvrtc.nvrtcGetCUBIN(program, binary)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return binary, text


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines()
    return lines[0][:300] if lines else ""


def resources(log: str) -> Resources:
    """What ptxas said of a source's kernel and its functions. Raises ValueError where it said nothing."""
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    frames = [int(n) for n in re.findall(r"(\d+) bytes stack frame", log)]
    if not registers or not frames:
        raise ValueError("ptxas said nothing of registers")
    return Resources(max(registers), max(frames), _spilled(log))


def _spilled(log: str) -> int:
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", log))
