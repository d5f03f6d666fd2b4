"""Compiles generated sources with the system's compiler and keeps the libraries on disk."""

import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from envs.kernel.tape import Refusal

FLAGS = ["-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w"]
VERSION = 1  # of everything in this package that decides a kernel; raise it to void caches


def cache_folder() -> Path:
    """Where kernels are kept: $MARL_KERNEL_CACHE, else ~/.cache/marl_kernels."""
    folder = Path(os.environ.get("MARL_KERNEL_CACHE") or Path.home() / ".cache" / "marl_kernels")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def compiler() -> str:
    """The C++ compiler: $CXX, g++ or clang++. Raises Refusal."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return shutil.which(name)
    raise Refusal("no C++ compiler was found (looked for $CXX, g++ and clang++)")


@lru_cache(maxsize=1)
def machine() -> str:
    """What of this machine decides machine code: architecture and the processor's features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = platform.processor()
    return f"{platform.machine()} {features}"


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
    """The library of a source, from disk if it was built before; the source defines `width`, which must be positive.

    Raises Refusal with the compiler's words.
    """
    prelude = Path(__file__).with_name("prelude.h").read_text()
    gxx = compiler()
    key = digest(
        VERSION, source, prelude, gxx, Path(gxx).resolve().stat().st_mtime, list(options), torch.__version__, machine()
    )
    target = cache_folder() / f"{key}.so"
    if target.exists():
        return target
    told = ""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        code, built = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        code.write_text(source)
        for flags in _variants():
            command = [gxx, *options, f"-I{Path(__file__).parent}", str(code), "-o", str(built), *flags]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode == 0 and _loads(built):
                os.replace(built, target)  # atomic: another process may build the same
                return target
            told = run.stderr.strip().splitlines()[0] if run.stderr.strip() else "the library does not load"
    raise Refusal(f"{gxx} failed: {told}")


def _loads(path: Path) -> bool:
    try:
        return ctypes.CDLL(str(path)).width() > 0
    except OSError:
        return False


def load(path: Path) -> ctypes.CDLL:
    """A compiled kernel."""
    return ctypes.CDLL(str(path))
