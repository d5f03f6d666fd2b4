"""How cost grows: time per frame from 1 to 100,000 environments and from 2 to 32 agents.

Simulation and collection apart, both in this process; networks are the defaults of conf/network/mlp.yaml. The rows
of one size are medians of rounds in a row: what matters is the slope over five orders of magnitude.
"""

import argparse
import gc
import math
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.simulation import NEVER, Stepper
from bench.timing import steps_within, timed
from envs.vmas.env import VmasEnv
from marl.config import compose
from marl.core.look.figures import style
from marl.launch import build

ENVIRONMENTS = (1, 10, 100, 1_000, 10_000, 100_000)
AGENTS = (2, 4, 8, 16, 32)
FIXED = 600  # environments where the number of agents grows
MANY = 1_000  # environments from which the exponent is fitted: below, the cost of a call hides the work
STEPS = 10  # of a rollout


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of the least-squares line through log(seconds per step) over log(size): 1 is linear."""
    xs, ys = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    x, y = statistics.mean(xs), statistics.mean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def steps_alone(num_envs: int, kwargs: dict, options: argparse.Namespace) -> tuple[float, str]:
    """Seconds of a step of the simulation, and the path it takes."""
    stepper = Stepper(VmasEnv("balance", num_envs, scenario_kwargs=kwargs, pool_every=NEVER, device=options.device), 4)
    count = steps_within(stepper.into, 0.01 if options.quick else 0.1, 4, options.device)

    def several() -> None:
        for _ in range(count):
            stepper.into()

    return statistics.median(timed(several, options.device) for _ in range(options.rounds)) / count, stepper.env.path


def point(num_envs: int, agents: int, options: argparse.Namespace) -> dict:
    """µs per environment frame of one size: of the simulation alone and of collection."""
    kwargs = {"n_agents": agents, "package_mass": 5, "random_package_pos_on_line": True}
    simulation, path = steps_alone(num_envs, kwargs, options)
    gc.collect()  # 100,000 environments and their pool are gigabytes
    overrides = ["algo=mappo", f"env.num_envs={num_envs}", f"env.scenario_kwargs.n_agents={agents}",
                 f"algo.rollout_steps={STEPS}", "algo.minibatch_size=1", f"env.pool_every={NEVER}",
                 "frames=1_000_000_000", f"device={options.device}"]  # fmt: skip
    config = compose.check(compose.compose(overrides))
    build.build_trainer(config)
    task = build.build_task(config)
    task.collector.reset(0)
    task.collector.collect(task.policy_generator)
    collect = partial(task.collector.collect, task.policy_generator)
    rounds = [timed(collect, options.device) for _ in range(options.rounds)]
    scale = 1e6 / num_envs
    return {"environments": num_envs, "agents": agents, "path": path, "simulation_us": simulation * scale,
            "collection_us": statistics.median(rounds) / STEPS * scale}  # fmt: skip


def curve(key: str, title: str, points: list[dict], axis: str, fitted: list[dict]) -> list[dict]:
    """Rows for both stages: the points, and the exponent of the time per step over `axis`."""
    rows = []
    for stage in ("simulation", "collection"):
        sizes = [p[axis] for p in fitted]
        seconds = [p[f"{stage}_us"] * p["environments"] for p in fitted]
        slope = exponent(sizes, seconds) if len(sizes) > 1 else math.nan
        rows.append({"key": f"scaling/{key}/{stage}", "name": f"{stage}, {title}", "value": slope, "unit": "exponent",
                     "axis": axis, "over": [sizes[0], sizes[-1]] if sizes else [],
                     "sizes": [p[axis] for p in points], "us_per_frame": [p[f"{stage}_us"] for p in points],
                     "paths": [p["path"] for p in points]})  # fmt: skip
    return rows


def scaling(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """Both curves, and the plot `--plot`."""
    counts, agents = ((1, 10), (2, 3)) if options.quick else (ENVIRONMENTS, AGENTS)
    over_envs = [point(count, 4, options) for count in counts]
    fixed = counts[-1] if options.quick else FIXED
    over_agents = [point(fixed, count, options) for count in agents]
    fitted = [p for p in over_envs if options.quick or p["environments"] >= MANY]
    rows = curve("environments", "4 agents, by environments", over_envs, "environments", fitted)
    rows += curve("agents", f"{fixed:,} environments, by agents", over_agents, "agents", over_agents)
    yield from rows
    if options.plot:
        plot(rows, options.plot)


def plot(rows: list[dict], path: Path) -> None:
    """Time per frame over environments and over agents."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context(style()):
        figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), dpi=120, sharey=True)
        for axes, axis in zip(panels, ("environments", "agents"), strict=True):
            for row in (row for row in rows if row["axis"] == axis):
                label = f"{row['key'].rpartition('/')[2]} (step $\\propto n^{{{row['value']:.2f}}}$)"
                axes.loglog(row["sizes"], row["us_per_frame"], "o-", label=label)
            axes.set(xlabel=axis)
            axes.legend(fontsize=8)
        panels[0].set(ylabel="µs per environment frame", title="balance, 4 agents")
        panels[1].set(title=f"balance, {FIXED} environments")
        panels[1].minorticks_off()
        panels[1].set_xticks(AGENTS, [str(n) for n in AGENTS])
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)
