"""`summary.json`: what a run came to, with what it ran on."""

import importlib.metadata
import platform
import resource
import subprocess
from pathlib import Path

import torch

from marl.core.files import write_json
from marl.engine.run_state import RunState
from marl.task import Task

PACKAGES = ("torch", "torchrl", "tensordict", "vmas", "gymnasium", "hydra-core", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def git_commit() -> str | None:
    """The commit of the source tree, with "-dirty" when it holds changes; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_memory_bytes() -> int:
    """Peak memory of this process: of the GPU where one is used, else resident on the host."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def write(path: str | Path, **content) -> dict:
    """Write `summary.json` from `content` plus memory, versions and commit; returns it."""
    content |= {
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    write_json(path, content)
    return content


def rates(run_state: RunState, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """How long this iteration took, its speed, and the learning rates (by part where they differ)."""
    seconds = run_state.stage_seconds()
    lr = {group["name"]: float(group["lr"]) for group in optimizer.param_groups}
    figures = {f"{stage}_seconds": value for stage, value in seconds.items()}
    figures[f"{run_state.unit}_per_second"] = run_state.units_per_iteration / max(sum(seconds.values()), 1e-9)
    figures["lr"] = next(iter(lr.values()))
    return figures | ({f"lr/{name}": rate for name, rate in lr.items()} if len(set(lr.values())) > 1 else {})


def finish(run_dir: Path, task: Task, run_state: RunState, seed: int, command: str) -> dict:
    """Write and return the summary of a run that has come to its end."""
    best = run_state.best
    if run_state.stop_reason:
        print(f"stopped: {run_state.stop_reason}", flush=True)
    return write(
        run_dir / "summary.json",
        task=task.name,
        seed=seed,
        **{run_state.unit: run_state.units},
        final=task.summary(run_state.evaluation),
        best=best and {**task.summary(best["evaluation"]), "iteration": best["iteration"]},
        stopped=run_state.stop_reason,
        seconds={k: run_state.seconds[k] for k in ("collect", "update", "evaluate", "compile", "total")},
        command=command,
    )
