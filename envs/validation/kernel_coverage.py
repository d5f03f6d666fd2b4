"""The table of docs/kernels.md: which scenarios run as kernels, how close to the simulator, how fast.

Usage:

    python -m envs.validation.kernel_coverage [scenario …] [--envs 600] [--json table.json] [--page docs/kernels.md]
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from envs.kernel.compile import Compiled, compiled
from envs.kernel.tracing.trace import drawn_values
from envs.validation.pages import replace_rows
from envs.vmas.env import VmasEnv
from envs.vmas.simulator import scenario_names


def settings_of(scenario: str) -> dict:
    """The settings of the table: continuous actions, time limit 100, the scenario's own defaults."""
    return {"scenario": scenario, "max_steps": 100}


def measure(scenario: str, num_envs: int, rounds: int = 15) -> dict:
    """One row: what was built, the largest errors, µs per step (10th percentile) of kernel and simulator in turn."""
    start = time.perf_counter()
    env = VmasEnv(**settings_of(scenario), num_envs=2, fast="off")
    compilation = compiled(env.world)
    if compilation.varies:  # one kernel for each value that resets draw for the whole batch; here, the first
        compilation = compiled(env.world, drawn=drawn_values(env.world.pool))
    row = {"scenario": scenario, "why": compilation.why, "seconds": time.perf_counter() - start, **compilation.facts}
    if not compilation.why:
        row |= _race(scenario, compilation, num_envs, rounds)
    return row


def _race(scenario: str, compilation: Compiled, num_envs: int, rounds: int) -> dict:
    env = VmasEnv(**settings_of(scenario), num_envs=num_envs, fast="off")
    kernel = compilation.step(num_envs, torch.get_num_threads())
    kernel.load_state(lambda path: env.world.pool.main.tensors[path].value)
    observed = {("observation", g): v for g, v in env.world.pool.observed.items()}
    kernel.load_pool(lambda path: env.world.pool.fresh.tensors[path].value, env.world.pool.size, observed)
    outputs = {key: torch.empty(num_envs, n) for key, n in compilation.places.outputs}
    outputs |= {("after", *key): torch.empty_like(outputs[key]) for key in compilation.places.restarted}
    ended = {("terminated",): torch.empty(num_envs, dtype=torch.bool)}
    ended["truncated",] = torch.empty(num_envs, dtype=torch.bool)
    actions = env.random_action()
    bound = {("action", g): a.contiguous() for g, a in actions.items()}
    kernel.bind({**outputs, **ended, **bound})
    eager, fast = [], []
    handed = [a.clone() for a in env.world.split_actions(actions)]
    with torch.no_grad():
        for _ in range(rounds):
            begin = time.perf_counter()
            env.simulator.step([a.clone() for a in handed])
            eager.append(time.perf_counter() - begin)
            for _ in range(20):
                begin = time.perf_counter()
                if compilation.noise:
                    kernel.draw()
                kernel.step(0, 3)
                fast.append(time.perf_counter() - begin)
    eager.sort(), fast.sort()
    return {"eager_us": eager[len(eager) // 10] * 1e6, "kernel_us": fast[len(fast) // 10] * 1e6}


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| scenario | operations | trace, s | compile, s | largest relative error | flipped dones | kernel, µs | "
        "simulator, µs | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if r["why"]:
            lines.append(f"| {r['scenario']} | — | | | {r['why']} | | | | |")
            continue
        s = r["seconds"] if isinstance(r["seconds"], dict) else {}
        worst = max(r["worst"].values(), default=0.0)
        lines.append(
            f"| {r['scenario']} | {r['operations']:,} | {s.get('trace', 0):.1f} | {s.get('compile', 0):.1f} | "
            f"{worst:.0e} | {r['flips']} of {r['compared']:,} | {r['kernel_us']:.0f} | {r['eager_us']:,.0f} | "
            f"{r['eager_us'] / r['kernel_us']:.0f} |"
        )
    return "\n".join(lines)


def command(
    about: str,
    measure: Callable[..., dict],
    table: Callable[[list[dict]], str],
    merge: Callable[[list[str], list[str]], list[str]] | None = None,
) -> None:
    """Measure the scenarios named on the command line, or all: a line of JSON each, and the table of the rows.

    --page: a page that holds the table; its rows of those scenarios are replaced. merge: (cells of the row on the page,
    new cells) -> cells, for tables that can be made without timing (--no-timing: measure(…, timed=False)).
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", help="all of VMAS's where none is named")
    parser.add_argument("--envs", type=int, default=600, help="environments that are timed")
    parser.add_argument("--json", type=Path, help="a file for the rows, written anew")
    parser.add_argument("--page", type=Path, help="a page whose table's rows of these scenarios are replaced")
    if merge:
        parser.add_argument("--no-timing", action="store_true", help="build and verify only, as on a busy machine")
    options = parser.parse_args()
    unknown = sorted(set(options.scenarios) - set(scenario_names()))
    if unknown:
        parser.error(f"{unknown[0]!r} is no scenario of VMAS; there are {', '.join(scenario_names())}")
    warnings.filterwarnings("ignore")
    rows = []
    for scenario in options.scenarios or scenario_names():
        rows.append(measure(scenario, options.envs, **({"timed": not options.no_timing} if merge else {})))
        print(json.dumps(rows[-1]), flush=True)
        if options.page:  # row by row: what was measured stays if the rest is interrupted
            options.page.write_text(replace_rows(options.page.read_text(), table(rows[-1:]), merge))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))


if __name__ == "__main__":
    command(__doc__, measure, table)
