"""The machine: what it is, and what it can do at most (matrix products, memory, tanh), measured through torch."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

from bench.timing import timed


def cpu_model() -> str:
    """The processor's name as the kernel gives it, family and model with it (virtual machines hide the rest)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines[: lines.index("")] if ":" in line)
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else name


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def commit() -> str:
    """The commit measured, with "-dirty" where the checkout holds changes."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def describe(device: str) -> dict:
    """What the figures were measured on, and when; `load` is the machine's load before anything began."""
    about = {
        "date": datetime.datetime.now().isoformat(timespec="minutes"),
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "the library's default"),
        "load": round(os.getloadavg()[0], 2),
        "commit": commit(),
        "device": device,
    }
    if device.startswith("cuda"):
        about["gpu"] = torch.cuda.get_device_name(device)
    return about


def best(work, seconds: float, device: str) -> float:
    """The shortest time of `work` within `seconds` (five times at least): a peak, not an average."""
    timed(work, device)
    taken, times = 0.0, []
    while taken < seconds or len(times) < 5:
        times.append(timed(work, device))
        taken += times[-1]
    return min(times)


def gemm_peak(device: str = "cpu", seconds: float = 0.4) -> dict[str, float]:
    """GFLOP/s of float32 matrix products: of shapes that a 256x256 network has, and of a large one."""
    peaks = {}
    for rows, inner, outer in ((4096, 256, 256), (16_384, 256, 256), (2048, 2048, 2048)):
        a, b = torch.randn(rows, inner, device=device), torch.randn(inner, outer, device=device)
        out = torch.empty(rows, outer, device=device)
        took = best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), seconds, device)
        peaks[f"{rows}x{inner}x{outer}"] = 2e-9 * rows * inner * outer / took
    return peaks


def bandwidth(device: str = "cpu", seconds: float = 0.5) -> float:
    """GB/s of the triad a = b + s c (McCalpin 1995) on arrays of 128 MB, three of which move per call."""
    a, b, c = (torch.rand(1 << 25, device=device) for _ in range(3))
    return 3 * a.numel() * 4e-9 / best(lambda: torch.add(b, c, alpha=3.0, out=a), seconds, device)


def tanh_peak(rows: int, device: str = "cpu", seconds: float = 0.2) -> float:
    """G elements/s of torch.tanh in place on [rows, 256]."""
    x = torch.randn(rows, 256, device=device)
    out = torch.empty_like(x)
    return x.numel() * 1e-9 / best(lambda: torch.tanh(x, out=out), seconds, device)
