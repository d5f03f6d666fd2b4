"""What of this machine is used, and what is missing: python scripts/doctor.py

A table with a line for each: Python and torch, compiler and vectors, cores, GPU, the folder of compiled kernels, the
optional extras of pyproject.toml, and packages of other versions than those that were tested together. Nothing is
changed. The last column says what to do where something is missing.
"""

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import torch

from marl.core import terminal
from marl.core.errors import CannotCompile, UserError
from marl.launch import cli
from marl.native import compiler, threads
from marl.native.library_cache import cache_folder

ROOT = Path(__file__).resolve().parent.parent
# Of what `-march=native` turns on, by the macro that says so: (name, bits); the widest first.
VECTORS = {"__AVX512F__": ("AVX-512", 512), "__AVX2__": ("AVX2", 256), "__AVX__": ("AVX", 256),
           "__ARM_NEON": ("NEON", 128), "__SSE2__": ("SSE2", 128)}  # fmt: skip
Row = tuple[str, str, str]  # what, what is here, what to do


def doctor() -> list[Row]:
    """Print the table; its rows."""
    rows = [*python(), *toolchain(), *processors(), *folders(), *extras(), *versions()]
    terminal.show_table(("what", "here", "to do"), rows)
    print(conclusion(rows))
    return rows


def conclusion(rows: list[Row]) -> str:
    """What the table comes to, in a line; extras are nothing that a run needs."""
    waiting = [what for what, _, todo in rows if todo]
    optional = sum(what.startswith("extra ") for what in waiting)
    needed = len(waiting) - optional
    first = f"{needed} of {len(rows)} lines say what to do" if needed else "nothing that is needed is missing"
    return f"{first}; of the extras, each for a purpose of its own, {optional} are not installed" if optional else first


def python() -> list[Row]:
    """The interpreter and torch."""
    build = torch.version.cuda and f"CUDA {torch.version.cuda}" or "CPU only"
    return [
        ("Python", f"{platform.python_version()} in {sys.prefix}", ""),
        ("torch", f"{torch.__version__} ({build})", ""),
    ]


def toolchain() -> list[Row]:
    """The compiler, and the vectors that it writes code for."""
    slow = "kernels cannot be built, scenarios step tens of times slower: install g++ (Debian: apt-get install g++)"
    try:
        path = compiler.compiler()
    except CannotCompile as error:
        return [("C++ compiler", f"none: {error}", slow)]
    shown = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    rows = [("C++ compiler", f"{path}: {shown}" if shown else path, "" if shown else slow)]
    command = [path, "-march=native", "-dM", "-E", "-x", "c++", "-"]
    macros = subprocess.run(command, input="", capture_output=True, text=True).stdout
    found = next((VECTORS[name] for name in VECTORS if re.search(rf"^#define {name}\b", macros, re.M)), None)
    text = f"{found[0]}, {found[1]} bits: {found[1] // 32} environments at once" if found else "none known"
    return [*rows, ("vectors", text, "")]


def processors() -> list[Row]:
    """Cores of the CPU that this process may use, and GPUs that torch can."""
    rows = [("CPU cores", f"{threads.cores()} ({platform.machine()})", "")]
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        rows.append((f"GPU {i}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB: device=cuda:{i}", ""))
    if torch.cuda.device_count():
        return rows
    todo = "torch sees no GPU: its driver is another's, or torch is a CPU build" if shutil.which("nvidia-smi") else ""
    return [*rows, ("GPU", "none that torch can use: device=cpu", todo)]


def folders() -> list[Row]:
    """Where compiled kernels are kept."""
    folder = cache_folder()
    files = [path for path in folder.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    return [("kernel cache", f"{folder}: {len(files)} files, {size:.0f} MB (MARL_KERNEL_CACHE names another)", "")]


def extras() -> list[Row]:
    """Optional packages, by the extra of pyproject.toml that brings them.

    Those that were not tested together with the rest may need other versions of it, as mlflow of protobuf: no `-c`.
    """
    tested = pinned()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = []
    for extra, requirements in project["optional-dependencies"].items():
        names = [name_of(each) for each in requirements if name_of(each) != project["name"]]
        missing = [name for name in names if installed(name) is None]
        here = "installed" if not missing else f"not installed: {', '.join(missing)}"
        held = " -c constraints.txt" if set(names) <= set(tested) else ""
        rows.append((f"extra {extra}", here, f"pip install -e '.[{extra}]'{held}" if missing else ""))
    return rows


def versions(constraints: Path = ROOT / "constraints.txt") -> list[Row]:
    """Packages whose version is not the tested one."""
    tested = pinned(constraints)
    here = {name: installed(name) for name in tested}
    others = [f"{name} {version} (tested: {tested[name]})" for name, version in here.items()
              if version and version.partition("+")[0] != tested[name]]  # fmt: skip
    known = sum(version is not None for version in here.values())
    return [("versions", ", ".join(others) or f"{known} packages, all as they were tested together", "")]


def pinned(constraints: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """{package: version} that was tested, of a file of constraints."""
    return dict(line.split("==") for line in constraints.read_text().splitlines() if re.match(r"[\w.-]+==", line))


def name_of(requirement: str) -> str:
    """The package of a requirement such as `torch>=2.11,<2.14`."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def installed(name: str) -> str | None:
    """The version of a package here; None where it is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        print(terminal.fit(__doc__ or ""))
    else:
        with cli.guard(""):
            if sys.argv[1:]:
                raise UserError(f"{sys.argv[1]}: scripts/doctor.py takes no arguments")
            doctor()
