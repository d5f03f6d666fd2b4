"""The toolchain: compiles C++ sources with the system's compiler and keeps the libraries on disk."""

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from marl.core.errors import CannotCompile
from marl.native import library_cache as cache

FLAGS = ["-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w"]
DIALECT = "-std=gnu++17"  # said, since Apple's clang takes C++98 where nothing is
PATIENCE = 900.0  # seconds for one run of the compiler, and to wait for another process that builds the same
VERSION = 1  # of what decides a library beside the sources; raise it to void caches
POLL = 0.02  # seconds between two looks at compilers that run
SIMD = Path(__file__).with_name("simd.h")  # what sources include: vectors and functions on them


def compiler() -> str:
    """The C++ compiler: $CXX, g++ or clang++. Raises CannotCompile."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise CannotCompile("no C++ compiler was found (looked for $CXX, g++ and clang++)")


@lru_cache(maxsize=1)
def machine() -> str:
    """What of this machine decides machine code: architecture and the processor's features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    return f"{platform.machine()} {features}"


def sources() -> str:
    """One name for the toolchain's own files, for callers that keep what it made of them."""
    return digest(Path(__file__).read_text(), SIMD.read_text())


def digest(*parts: object) -> str:
    """A short name for everything that decides a result."""
    return hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).hexdigest()[:24]


def _variants(folder: Path, gxx: str) -> list[list[str]]:
    """Flags to try in turn, fastest first; `folder` is for scratch."""
    libraries = Path(torch.__file__).parent / "lib"
    own = sorted([*libraries.glob("libgomp*.so*"), *libraries.glob("libomp*.dylib")])  # torch's: one pool of threads
    apple = platform.system() == "Darwin"  # its clang takes OpenMP's pragmas only so, and its loader needs the folder
    found = [f"-Wl,-rpath,{libraries}"] if apple else []
    openmp = [*(["-Xpreprocessor"] if apple else []), "-fopenmp", *map(str, own[:1]), *found]
    sleef = ["-DUSE_SLEEF", *_linked_by_name(folder, gxx), f"-L{libraries}", "-ltorch_cpu", *found]
    native = ["-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"]
    return [[*native, *openmp, *sleef], [*native, *openmp], [*native, *sleef], native, openmp, []]


def compile_library(source: str, options: Sequence[str] = FLAGS, more: Sequence[str] = ()) -> Path:
    """The library of a source, from disk if it was built before.

    The source may include "simd.h". It defines `width`, which must be positive. more: further sources of the same
    library, compiled side by side on all processors.

    Raises:
        CannotCompile: there is no compiler, it fails (with its words), or the library can't be written.
    """
    gxx = compiler()
    modified = Path(gxx).resolve().stat().st_mtime
    key = digest(VERSION, source, *more, SIMD.read_text(), gxx, modified, list(options), torch.__version__, machine())
    try:
        target = cache.find(key, ".so")
        if target is None:
            with cache.building(key, ".so", PATIENCE):
                target = cache.find(key, ".so") or _compile([source, *more], key, gxx, options)
    except OSError as error:
        raise CannotCompile(f"no kernel could be written: {error.strerror or error}") from error
    return target


def _compile(sources: Sequence[str], key: str, gxx: str, options: Sequence[str]) -> Path:
    message = ""
    with tempfile.TemporaryDirectory(dir=cache.cache_folder(), prefix=cache.BUILDING) as folder:
        codes, built = [Path(folder) / f"kernel{i}.cpp" for i in range(len(sources))], Path(folder) / "kernel.so"
        for code, source in zip(codes, sources, strict=True):
            code.write_text(source)
        for flags in _variants(Path(folder), gxx):
            command, parts = [gxx, DIALECT, *options, f"-I{SIMD.parent}"], codes
            if len(codes) > 1:
                parts = [code.with_suffix(".o") for code in codes]
                status, message = _run(
                    *(
                        [*command, "-c", str(code), "-o", str(part), *flags]
                        for code, part in zip(codes, parts, strict=True)
                    )
                )
            if len(codes) == 1 or status == 0:
                status, message = _run([*command, *map(str, parts), "-o", str(built), *flags])
            if status == 0 and _loads(built):
                return cache.keep(built.read_bytes(), key, ".so")
            message = message or "the library does not load"
    raise CannotCompile(f"{gxx} failed: {message}")


def _linked_by_name(folder: Path, gxx: str) -> list[str]:
    """Flags by which the linker finds an empty library of torch's name in `folder`: reading torch's takes it 0.2 s.

    The loader knows libraries by their names, and torch's is loaded. None where linkers know no such flags.
    Raises CannotCompile where the compiler does not end in time.
    """
    name = "libtorch_cpu.so"
    command = [gxx, "-shared", "-nostdlib", f"-Wl,-soname,{name}", "-o", str(folder / name), "-x", "assembler"]
    status, _ = _run([*command, os.devnull])
    return [f"-L{folder}", "-Wl,--no-as-needed"] if status == 0 else []


def _run(*commands: list[str]) -> tuple[int, str]:
    """(exit status, first line of its messages) of the first compiler to fail, else of the last to end.

    As many run at a time as there are processors. Raises CannotCompile where one does not end in time.
    """
    left, running, status, message = list(commands), {}, 0, ""
    try:
        while (left and status == 0) or running:
            while left and status == 0 and len(running) < (os.cpu_count() or 1):
                words = tempfile.TemporaryFile()
                process = subprocess.Popen(
                    left.pop(0),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=words,
                    start_new_session=True,
                )
                running[process] = words, time.monotonic() + PATIENCE
            time.sleep(POLL)
            for process, (words, until) in list(running.items()):
                if process.poll() is None:
                    if time.monotonic() > until:
                        raise CannotCompile(f"{process.args[0]} did not end within {PATIENCE:g} s")
                    continue
                del running[process]
                words.seek(0)
                text = words.read().decode(errors="replace").strip()
                words.close()
                if status == 0:
                    status, message = process.returncode, text.splitlines()[0][:300] if text else ""
    finally:  # whatever ends early: a Ctrl-C does not reach a session of its own
        for process, (words, _) in running.items():
            _end(process)
            words.close()
    return status, message


def _end(process: subprocess.Popen) -> None:
    """Ends a compiler and the programs that it started."""
    with contextlib.suppress(ProcessLookupError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _loads(path: Path) -> bool:
    """Whether a library just built can be loaded and its `width` called, tried in this process."""
    try:
        return ctypes.CDLL(str(path)).width() > 0
    except (OSError, AttributeError):
        return False


def load(path: Path) -> ctypes.CDLL:
    """A compiled kernel."""
    return ctypes.CDLL(str(path))
