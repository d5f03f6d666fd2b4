"""A soak: trains for hours with a checkpoint every iteration; watches memory and open files, verifies what is written.

    python tests/trials/soak.py --hours 2 --folder soak --json soak.json

Exit code 0 where memory grew by less than 1 %, no file handle leaked and no checkpoint was damaged; else 1. The
JSON file is rewritten at every report, so an interrupted soak leaves its figures too.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
KEEP = 60  # checkpoints kept by the run: the watcher comes by often enough to see every one of them
SETTINGS = [
    "algo=mappo",
    "env.num_envs=60",
    "algo.minibatch_size=1000",
    "network.hidden=[64,64]",
    "frames=1_000_000_000",
    "scheduler=constant",
    "trainer.threads=1",
    "trainer.checkpoint_every=1",
    f"trainer.keep_last={KEEP}",
    "trainer.evaluate_every=20",
    "task.eval_episodes=20",
    "trainer.progress=off",
]


def start(folder: Path) -> subprocess.Popen:
    """The training run, in a process of its own."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *SETTINGS, f"hydra.run.dir={folder}"]
    with open(folder / "output.txt", "ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)


def verify(folder: Path, checked: dict[int, bool]) -> None:
    """Look at every checkpoint whose file is new; `checked`: {inode with its time: whether it is good}."""
    from marl.checkpoints import checkpoint_file
    from marl.core.errors import UserError

    def key(path: Path) -> tuple[int, int] | None:
        try:
            about = path.stat()
        except FileNotFoundError:
            return None
        return about.st_ino, about.st_mtime_ns

    for path in sorted((folder / "checkpoints").glob("last*.pt")):
        before, message = key(path), ""
        if before is None or before in checked:
            continue
        try:
            good = isinstance(checkpoint_file.load(path)["iteration"], int)
        except UserError as error:
            good, message = False, str(error)
        if key(path) != before:  # renamed meanwhile: seen under its new name the next time
            continue
        checked[before] = good
        if message:
            print(message, flush=True)


def iterations(folder: Path) -> int:
    """Rows of metrics.csv, less its head."""
    with open(folder / "metrics.csv", "rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b"")) - 1


def report(samples: list[tuple[float, int, int]], checked: dict, folder: Path, began: float) -> dict:
    """Figures so far. Memory is compared after a twentieth of the time, when buffers and caches have filled."""
    settled = samples[len(samples) // 20 :]
    part = max(1, len(settled) // 10)
    first, last = (statistics.median(s[1] for s in side) for side in (settled[:part], settled[-part:]))
    handles = [s[2] for s in settled]
    done = iterations(folder)
    figures = {
        "hours": round((time.time() - began) / 3600, 3),
        "iterations": done,
        "checkpoints_verified": len(checked),
        "checkpoints_damaged": sum(not good for good in checked.values()),
        "resident_mb_first": round(first / 2**20, 2),
        "resident_mb_last": round(last / 2**20, 2),
        "memory_growth_percent": round(100 * (last / first - 1), 3),
        "file_handles_first": statistics.median(handles[:part]),
        "file_handles_last": statistics.median(handles[-part:]),
        "samples": len(samples),
    }
    good = figures["memory_growth_percent"] < 1 and figures["checkpoints_damaged"] == 0
    good = good and figures["file_handles_last"] <= figures["file_handles_first"]
    figures["passed"] = bool(good)
    figures["sentence"] = (
        f"{figures['hours']:.2f} hours, {done:,} iterations with a checkpoint each, {len(checked):,} of them verified, "
        f"{figures['checkpoints_damaged']} damaged; resident memory {figures['resident_mb_first']:.1f} -> "
        f"{figures['resident_mb_last']:.1f} MiB ({figures['memory_growth_percent']:+.2f} %), open file handles "
        f"{figures['file_handles_first']:.0f} -> {figures['file_handles_last']:.0f}."
    )
    return figures


def main() -> int:
    """Train, watch, report; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0, help="how long (default 2)")
    parser.add_argument("--folder", type=Path, default=Path("outputs/soak"), help="the run directory, empty or new")
    parser.add_argument("--json", type=Path, default=Path("outputs/soak.json"), help="where the figures go")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two looks (default 5)")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the run is ended too
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    run = start(folder)
    process, samples, checked = psutil.Process(run.pid), [], {}
    while not (folder / "checkpoints" / "last.pt").exists():
        if run.poll() is not None:
            raise SystemExit(f"the run ended with {run.returncode}: see {folder / 'output.txt'}")
        time.sleep(0.2)
    began = last_printed = time.time()
    try:
        while time.time() - began < 3600 * options.hours and run.poll() is None:
            time.sleep(options.every)
            verify(folder, checked)
            if run.poll() is None:
                samples.append((time.time() - began, process.memory_info().rss, process.num_fds()))
            if time.time() - last_printed > 60 and samples:
                last_printed = time.time()
                options.json.write_text(json.dumps(report(samples, checked, folder, began), indent=2) + "\n")
    finally:
        died = run.poll()
        if died is None:
            run.send_signal(signal.SIGTERM)
            run.wait(timeout=300)
    if not samples:
        raise SystemExit(f"the run ended with {run.returncode}: see {folder / 'output.txt'}")
    verify(folder, checked)
    figures = report(samples, checked, folder, began)
    figures["exit_code"] = run.returncode
    figures["passed"] = figures["passed"] and died is None and run.returncode == 128 + signal.SIGTERM
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(figures["sentence"])
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
