"""How many decisions a server gives, and how late, under the load of wrk, a public load generator (apt install wrk).

    python scripts/bench/serving.py --seconds 120 --connections 1 32 --json serving.json   # all rows: half an hour
    python scripts/bench/serving.py --seconds 2                                            # a try of them
    python scripts/bench/serving.py --only "raw, joined" --connections 32                  # some of them

Each setting is a server of its own, asked over loopback on kept connections: by itself (max_wait_ms=null), joined
(max_wait_ms=0, 2), as JSON and as raw float32, by torch and by onnxruntime. Beside it stands the same policy in a bare
loop. Server and wrk take a core each: on a machine of two cores nothing else may run. A row is printed as JSON when it
is measured, the table of docs/guides/serving.md at the end. Memory is read once a second; its growth compares its
medians in the second and the last tenth. CPU is what the server's process computed for each request, which other
programs on the machine change little.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch

from agents.deploy.export import export
from agents.policies.policy import Policy

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    ("raw, each by itself (`max_wait_ms=null`)", ["max_wait_ms=null"], "raw"),
    ("raw, joined without waiting (`max_wait_ms=0`)", ["max_wait_ms=0"], "raw"),
    ("raw, joined (`max_wait_ms=2`)", ["max_wait_ms=2"], "raw"),
    ("JSON, each by itself", ["max_wait_ms=null"], "json"),
    ("JSON, joined without waiting", ["max_wait_ms=0"], "json"),
    ("raw, joined without waiting, `backend=onnx`", ["max_wait_ms=0", "backend=onnx"], "raw"),
]
COLUMNS = {  # of the table: a row's key, its heading, how its value is written
    "setting": ("setting", "{}"),
    "connections": ("connections", "{}"),
    "per_second": ("requests per second", "{:,.0f}"),
    "p50_ms": ("p50, ms", "{:.2f}"),
    "p99_ms": ("p99, ms", "{:.2f}"),
    "p99.9_ms": ("p99.9, ms", "{:.2f}"),
    "cpu_us": ("CPU µs of a request", "{:.0f}"),
    "requests_per_batch": ("requests of a batch", "{:.1f}"),
    "memory_mb": ("memory, MB", "{:.0f}"),
    "growth": ("its growth", "{:.2%}"),
    "failed": ("failed", "{}"),
}
SCRIPT = """
wrk.method, wrk.path, wrk.body = "POST", "/v1/act", io.open("%(body)s", "rb"):read("*a")
wrk.headers["content-type"] = "%(kind)s"
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests": %%d, "microseconds": %%d, "p50": %%d, "p99": %%d, "p999": %%d, "failed": %%d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def row_of(policy: Policy) -> dict[str, torch.Tensor]:
    """One row of observations of all groups."""
    draw = torch.Generator().manual_seed(0)
    groups = policy.spec.groups.items()
    return {n: torch.randn(1, g.n_agents, g.observation_size, generator=draw) for n, g in groups}


def bare(name: str, decide: Callable[[], object], seconds: float) -> dict:
    """Decisions in a loop, in one row at a time."""
    for _ in range(100):
        decide()
    times, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        decide()
        times.append(time.perf_counter() - start)
    p50, p99, p999 = np.percentile(times, [50, 99, 99.9])
    return {"setting": name, "per_second": len(times) / sum(times), "p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99,
            "p99.9_ms": 1e3 * p999}  # fmt: skip


def loops(policy: Policy, seconds: float, folder: Path) -> list[dict]:
    """The policy without a server."""
    import onnxruntime

    row = row_of(policy)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(export(policy, "onnx", folder)), options)
    feed = {f"{name}_observation": value.numpy() for name, value in row.items()}
    return [
        bare("torch in a loop", lambda: policy.act(row), seconds),
        bare("onnxruntime in a loop", lambda: session.run(None, feed), seconds),
    ]


def bodies(policy: Policy, folder: Path) -> dict[str, tuple[Path, str]]:
    """A request's body in each format: a file, and its content type."""
    row = row_of(policy)
    named = {n: dict(zip(policy.spec.groups[n].agents, v[0].tolist(), strict=True)) for n, v in row.items()}
    raw, text = folder / "body.raw", folder / "body.json"
    raw.write_bytes(b"".join(value.numpy().astype("<f4").tobytes() for value in row.values()))
    text.write_text(json.dumps({"observations": named}))
    return {"raw": (raw, "application/octet-stream"), "json": (text, "application/json")}


def watch(process: psutil.Process, end: threading.Event, memory: list[float]) -> None:
    """Read a process's memory once a second, in MB."""
    while not end.wait(1.0):
        memory.append(process.memory_info().rss / 1e6)


def busy(pid: int) -> float:
    """CPU seconds of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def load(wrk: list[str]) -> str:
    """What wrk printed; the measurement ends where it could not do its work."""
    done = subprocess.run(wrk, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(wrk)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def served(
    name: str, ckpt: str, keys: list[str], body: tuple[Path, str], connections: int, seconds: float, folder: Path
) -> dict:
    """A server under load."""
    script = folder / "load.lua"
    script.write_text(SCRIPT % {"body": body[0], "kind": body[1]})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), f"ckpt={ckpt}", "port=0", "drain_seconds=0", *keys]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            line = server.stdout.readline()
            if not line:
                sys.exit(f"{name}: the server did not start; what it said stands above")
            url = line.split()[0]
            memory: list[float] = []
            end = threading.Event()
            watcher = threading.Thread(target=watch, args=(psutil.Process(server.pid), end, memory))
            wrk = ["wrk", "-t1", f"-c{connections}", "--timeout", "10s", "-s", str(script)]
            load([*wrk, "-d2s", url])  # warm
            watcher.start()
            before = busy(server.pid)
            printed = load([*wrk, f"-d{seconds:g}s", url])
            computed = busy(server.pid) - before
            end.set()
            watcher.join()
            metrics = subprocess.run(["curl", "-s", f"{url}metrics"], capture_output=True, text=True).stdout
        finally:
            server.terminate()
    figures = json.loads(printed[printed.rindex("{") :])
    sums = [float(re.search(rf"marl_batch_requests_{key} (\S+)", metrics)[1]) for key in ("sum", "count")]
    tenth = max(1, len(memory) // 10)
    growth = statistics.median(memory[-tenth:]) / statistics.median(memory[tenth : 2 * tenth] or memory) - 1
    return {
        "setting": name,
        "connections": connections,
        "per_second": figures["requests"] / figures["microseconds"] * 1e6,
        **{f"{label}_ms": figures[key] / 1e3 for label, key in (("p50", "p50"), ("p99", "p99"), ("p99.9", "p999"))},
        "failed": figures["failed"],
        "cpu_us": 1e6 * computed / figures["requests"],
        "requests_per_batch": sums[0] / sums[1],
        "memory_mb": memory[-1],
        "growth": growth,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="zoo/balance", help="whose policy is served (zoo/balance)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of load for each row (120)")
    parser.add_argument(
        "--connections", type=int, nargs="+", default=[1, 32], help="that ask at once, a row each (1 32)"
    )
    parser.add_argument("--only", default="", help="settings whose name holds this text")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt install wrk")
    before = f"{os.getloadavg()[0]:.1f}"
    torch.set_num_threads(1)
    policy, rows = Policy.load(options.ckpt), []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        if options.only in "in a loop":
            rows += loops(policy, min(10.0, options.seconds), folder)
        made = bodies(policy, folder)
        for name, keys, kind in SETTINGS:
            for connections in options.connections if options.only in name else ():
                rows.append(served(name, options.ckpt, keys, made[kind], connections, options.seconds, folder))
                print(json.dumps(rows[-1]), flush=True)
    print(f"| {' | '.join(heading for heading, _ in COLUMNS.values())} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        print(f"| {' | '.join(form.format(row[key]) if key in row else '–' for key, (_, form) in COLUMNS.items())} |")
    print(f"{options.seconds:g} s each, {os.cpu_count()} cores, load before: {before}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
