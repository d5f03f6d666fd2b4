"""Measures speed against peers and hardware: python scripts/benchmark.py [--only CASE …] [--quick] [--write PAGE]

`--device cuda --check` is for a machine with a GPU, takes 8 minutes at most, and needs no peers: kernels against the
simulator (all scenarios), gradient kernels, bitwise resume, CUDA graphs against the plain path, balance to a return of
40; then simulation beside raw VMAS, collection, update and whole iterations at 600 to 100,000 environments.

One run measures every case in turn (16 minutes at most on two cores): our side and a peer's alternate, so that both
see the same machine; medians and the spread of the pairs are reported, beside what was aimed for. The peers live in
virtual environments of their own (`make peers`); cases whose peer is missing are left out and named.
Write down the machine's load: figures from a busy machine are worth little.
Exit code 1: a case or a check failed; 2: a mistake in the options, or no such device.
"""

import argparse
import json
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is loaded, for this process and all others: threads that wait in a busy loop steal the time of those
# that work, on any machine that has other work to do. The peers gain from it as we do.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

Case = Callable[[argparse.Namespace, float], Iterator[dict]]
SECONDS = {  # of alternations, by case, in a whole run; starting the sides comes on top
    "hardware": 20, "simulation": 70, "jax_step": 15, "first_start": 60, "collection": 190, "torchrl": 30,
    "end_to_end": 110, "off_policy": 170, "jax_ippo": 20, "scaling": 60, "learn": 120, "coverage": 200,
}  # fmt: skip
WHEN_ASKED = ("coverage",)  # takes minutes with an empty kernel cache
CHECK_MINUTES = 7.5  # of --check, so that starting and writing end within 8


def cases() -> dict[str, Case]:
    """The measurements by name, in their order; imported here, after the environment is set."""
    from bench import hardware, learning, off_policy, scaling, simulation

    return {
        "hardware": hardware.hardware,
        "simulation": simulation.simulation,
        "jax_step": simulation.against_jax,
        "first_start": simulation.first_start,
        "collection": learning.collection,
        "torchrl": learning.torchrl,
        "end_to_end": learning.end_to_end,
        "off_policy": off_policy.off_policy,
        "jax_ippo": learning.jax_ippo,
        "scaling": scaling.scaling,
        "learn": learning.learn,
        "coverage": simulation.coverage,
    }


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    from marl.core import terminal

    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=terminal.fit(__doc__), formatter_class=shape)
    add = parser.add_argument
    add("--only", nargs="+", default=[], choices=list(SECONDS), metavar="CASE", help=f"of {', '.join(SECONDS)}")
    add("--skip", nargs="+", default=[], choices=list(SECONDS), metavar="CASE", help="leave these out")
    add("--quick", action="store_true", help="tiny sizes, two rounds: to see that all runs; the figures mean nothing")
    add("--rounds", type=int, help="alternations of each comparison (default 5)")
    add("--minutes", type=float, help="aim to end by then: slow cases make fewer rounds (default 16; with --check 7.5)")
    add("--learn-seconds", type=float, default=60, help="of BenchMARL's run in `learn`; 0 leaves it out (default 60)")
    add("--peers", type=Path, default=Path(".peers"), help="folder of the peers' environments (default .peers)")
    add("--threads", type=int, help="cores that all sides may use (default: all)")
    add("--device", default="cpu", help="of our side, VMAS and BenchMARL (default cpu)")
    add("--check", action="store_true", help="with --device cuda: check and measure what runs on a GPU, nothing else")
    add(
        "--json",
        type=Path,
        help="where the figures go (default outputs/benchmark.json, with --check outputs/gpu_check.json)",
    )
    add("--keep", action="store_true", help="keep the cases of an existing --json that are not measured now")
    add("--report", action="store_true", help="measure nothing: report on --json")
    add(
        "--write",
        type=Path,
        metavar="PAGE",
        help="put the report between the markers of a Markdown file; "
        "what stands there of cases that are not measured stays",
    )
    add("--plot", type=Path, help="picture of `scaling` (default: scaling.png beside --write, or beside --json)")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (2 if options.quick else 5)
    if options.minutes is None:
        options.minutes = CHECK_MINUTES if options.check else 16
    options.json = options.json or Path("outputs", "gpu_check.json" if options.check else "benchmark.json")
    options.peers, options.json = options.peers.resolve(), options.json.resolve()
    options.plot = options.plot or (options.write or options.json).with_name("scaling.png")
    if options.quick and options.learn_seconds:
        options.learn_seconds = 30
    return options


def chosen(options: argparse.Namespace) -> list[str]:
    """The cases to measure."""
    names = options.only or [name for name in SECONDS if name not in WHEN_ASKED]
    return [name for name in SECONDS if name in names and name not in options.skip]


def limit_threads(count: int | None) -> None:
    """Pin this process, and with it all that it starts, to `count` cores; each library then sees only those."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.pop(name, None)
    if count is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def share(name: str, left: list[str], seconds: float) -> float:
    """How long a case may alternate when `left` cases still have `seconds` in all; a fifth goes into starting sides."""
    return SECONDS[name] * max(0.2, 0.8 * seconds / sum(SECONDS[other] for other in left))


def measure(name: str, case: Case, options: argparse.Namespace, share: float) -> dict:
    """One case: its rows as they come, how long it took, and what kept it from being complete."""
    from bench import sides

    began, rows, error, failed, load = time.perf_counter(), [], None, False, os.getloadavg()[0]
    try:
        for row in case(options, share):
            rows.append(row)
            value = f"{row['ratio']:.3g} x {row['peer']}" if "ratio" in row else f"{row['value']:.4g} {row['unit']}"
            print(f"  {row['name']}: {value}", flush=True)
    except sides.Missing as missing:
        error = str(missing)
        print(f"  left out: {error}", flush=True)
    except Exception as broken:  # the other cases are still worth measuring; the exit code says that one failed
        error, failed = " ".join(f"{type(broken).__name__}: {broken}".split()), True
        traceback.print_exc()
    seconds = time.perf_counter() - began
    return {"rows": rows, "seconds": seconds, "load": round(load, 1), "error": error, "failed": failed}


def check(options: argparse.Namespace, command: str) -> int:
    """What `--check` asks for; the exit code. A user's mistake ends with one line and exit code 2."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for GPUs must not rule out forks
    from bench.gpu import command as gpu

    from marl.launch import cli

    with cli.guard():
        return gpu.run(options, command)


def main(argv: list[str] | None = None) -> int:
    """Measure, write the JSON, print and write the report. Returns the exit code: 1 where a case failed."""
    options = arguments(argv)
    command = "python scripts/benchmark.py " + shlex.join(sys.argv[1:] if argv is None else argv)
    limit_threads(options.threads)
    if options.check:
        return check(options, command.strip())
    from bench import machine, report

    from marl.core.files import write_json

    by_name, results = cases(), {"cases": {}}
    if (options.keep or options.report) and options.json.exists():
        results = json.loads(options.json.read_text())
    if not options.report:
        results |= {"machine": machine.describe(options.device), "command": command.strip()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        names, end = chosen(options), time.perf_counter() + 60 * options.minutes + max(0, options.learn_seconds - 60)
        for place, name in enumerate(names):
            print(f"{name}:", flush=True)
            seconds = share(name, names[place:], end - time.perf_counter())
            results["cases"][name] = {**measure(name, by_name[name], options, seconds), "machine": results["machine"]}
            if name == "scaling" and not results["cases"][name]["error"]:
                results["cases"][name]["picture"] = options.plot.name
            write_json(options.json, results)
    text = report.markdown(results, {name: (case.__doc__ or "").split("\n")[0] for name, case in by_name.items()})
    if options.write:
        report.write(options.write, report.merged(report.written(options.write), text, list(SECONDS)))
    print(text)
    return int(any(case["failed"] for case in results["cases"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
