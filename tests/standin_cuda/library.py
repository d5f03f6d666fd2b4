"""The stand-in's library of C++: built once per version of torch and of its sources, and loaded before torch is."""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = sorted(p for p in (Path(__file__).parent / "cpp").iterdir() if p.suffix in (".h", ".cpp"))
FLAGS = ["-std=c++20", "-O1", "-w", "-shared", "-fPIC"]


def torch_folder() -> Path:
    """Where torch lies, without importing it."""
    return Path(importlib.util.find_spec("torch").origin).parent


def compiler() -> str | None:
    """The C++ compiler; None where there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++"))), None)


def build() -> Path:
    """The library, from the cache if it was built before. Raises CalledProcessError with the compiler's words."""
    torch = torch_folder()
    parts = [(torch / "version.py").read_bytes(), *(path.read_bytes() for path in SOURCES), str(torch).encode()]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marl_standin_cuda"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{hashlib.sha256(b'/'.join(parts)).hexdigest()[:24]}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes of the tests one builds
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = Path(scratch) / "standin.so"
                source = next(path for path in SOURCES if path.suffix == ".cpp")
                link = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}"]
                command = [compiler() or "g++", *FLAGS, f"-I{torch / 'include'}", str(source), "-o", str(built), *link]
                subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
                built.rename(target)
    return target


def load(path: Path) -> ctypes.CDLL:
    """The library's functions. Torch must not have been imported: it asks once what devices there are."""
    library = ctypes.CDLL(str(path))
    for name in ("allocated", "peak", "allocations", "capture_end", "graph_size"):
        getattr(library, f"standin_{name}").restype = ctypes.c_int64
    for name in ("graph_size", "replay", "forget"):
        getattr(library, f"standin_{name}").argtypes = [ctypes.c_int64]
    library.standin_failure.restype = ctypes.c_char_p
    return library
