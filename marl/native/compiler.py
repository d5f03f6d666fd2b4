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
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from marl.core.errors import CannotCompile
from marl.native import library_cache as cache

FLAGS = ["-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w"]
PATIENCE = 900.0  # seconds for one run of the compiler, and to wait for another process that builds the same
VERSION = 1  # of what decides a library beside the sources; raise it to void caches
SIMD = Path(__file__).with_name("simd.h")  # what sources include: vectors and functions on them


def compiler() -> str:
    """The C++ compiler: $CXX, g++ or clang++. Raises CannotCompile."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return shutil.which(name)
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


def _variants() -> list[list[str]]:
    """Flags to try in turn, fastest first."""
    libraries = Path(torch.__file__).parent / "lib"
    gomp = sorted(libraries.glob("libgomp*.so*"))  # torch's own OpenMP: a second one would bring a second thread pool
    openmp = ["-fopenmp", *([str(gomp[0])] if gomp else [])]
    sleef = ["-DUSE_SLEEF", f"-L{libraries}", "-ltorch_cpu"]
    native = ["-march=native"]
    return [[*native, *openmp, *sleef], [*native, *openmp], openmp, []]


def compile_library(source: str, options: Sequence[str] = FLAGS) -> Path:
    """The library of a source, from disk if it was built before.

    The source may include "simd.h". It defines `width`, which must be positive.

    Raises:
        CannotCompile: there is no compiler, it fails (with its words), or the library can't be written.
    """
    gxx = compiler()
    modified = Path(gxx).resolve().stat().st_mtime
    key = digest(
        VERSION, source, SIMD.read_text(), gxx, modified, list(options), torch.__version__, machine()
    )
    try:
        target = cache.find(key, ".so")
        if target is None:
            with cache.building(key, ".so", PATIENCE):
                target = cache.find(key, ".so") or _compile(source, key, gxx, options)
    except OSError as error:
        raise CannotCompile(f"no kernel could be written: {error.strerror or error}") from error
    return target


def _compile(source: str, key: str, gxx: str, options: Sequence[str]) -> Path:
    message = ""
    with tempfile.TemporaryDirectory(dir=cache.cache_folder(), prefix=cache.BUILDING) as folder:
        code, built = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        code.write_text(source)
        for flags in _variants():
            status, message = _run([gxx, *options, f"-I{SIMD.parent}", str(code), "-o", str(built), *flags])
            if status == 0 and _loads(built):
                return cache.keep(built.read_bytes(), key, ".so")
            message = message or "the library does not load"
    raise CannotCompile(f"{gxx} failed: {message}")


def _run(command: list[str]) -> tuple[int, str]:
    """(exit status, first line of its messages) of a compiler. Raises CannotCompile where it does not end in time."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          start_new_session=True) as process:
        try:
            message = process.communicate(timeout=PATIENCE)[1].decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            _end(process)
            raise CannotCompile(f"{command[0]} did not end within {PATIENCE:g} s") from None
        except BaseException:  # a Ctrl-C does not reach a session of its own
            _end(process)
            raise
    return process.returncode, message.splitlines()[0][:300] if message else ""


def _end(process: subprocess.Popen) -> None:
    """Ends a compiler and the programs that it started."""
    with contextlib.suppress(ProcessLookupError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _loads(path: Path) -> bool:
    """Whether a library just built can be loaded and its `width` called, tried in this process."""
    try:
        return ctypes.CDLL(str(path)).width() > 0
    except (OSError, AttributeError):
        return False


def load(path: Path) -> ctypes.CDLL:
    """A compiled kernel."""
    return ctypes.CDLL(str(path))
