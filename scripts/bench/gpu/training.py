"""Checks of whole runs on the card: resumed ones, captured beside plain ones, and balance learned."""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.gpu import runs
from bench.gpu.parts import verdict
from bench.timing import Clock, compared, figure
from marl.capture.cuda_graph import GraphedWork, NotCaptured

TARGET = 40.0  # mean return on balance
ITERATIONS = 10  # of a captured run; rollouts are captured in the 4th, and compared at the 1st, 2nd, 3rd, 5th replay
TINY = ["env.num_envs=4", "env.max_steps=5", "algo.rollout_steps=4", "algo.minibatch_size=8"]
SIZES = ["env.num_envs=600", "algo.rollout_steps=100"]
REPLAY = ["env.num_envs=60", "algo.rollout_steps=100", "algo.minibatch_size=128", "algo.updates=50",
          "algo.buffer_frames=20_000"]  # fmt: skip
PPO = ["algo.minibatch_size=4096", "algo.epochs=4"]
RUNS = {  # item: overrides that choose, and their sizes
    "mappo": (["algo=mappo"], [*SIZES, *PPO]),
    "masac": (["algo=masac"], REPLAY),
    "mappo, bf16": (["algo=mappo", "trainer.precision=bf16"], [*SIZES, *PPO]),
    "mappo, memory": (["algo=mappo", "env=memory"], ["env.num_envs=600", "algo.rollout_steps=24", *PPO]),
}
STEP_BY_STEP = ("masac",)  # whose rollouts need not be graphs
SMALL = {  # the same for --quick
    "masac": [*TINY, "algo.updates=2", "algo.buffer_frames=64"],
    "mappo, memory": ["env.num_envs=4", "env.max_delay=2", "env.min_delay=1", *TINY[2:]],
}


def overrides(item: str, options: argparse.Namespace) -> list[str]:
    """Of one of `RUNS`, on balance where it names no environment."""
    chosen, sizes = RUNS[item]
    env = [] if any(each.startswith("env=") for each in chosen) else [f"env=vmas/{scenario(options)}"]
    sizes = SMALL.get(item, TINY) if options.quick else sizes
    return [*env, *chosen, f"device={options.device}", *runs.QUIET, *sizes]


def scenario(options: argparse.Namespace) -> str:
    """What is trained: balance, with --quick the scenario whose kernel takes least to be made."""
    return "mpe/simple_spread" if options.quick else "balance"


def resumes(options: argparse.Namespace) -> list[str]:
    """An algorithm of each kind."""
    return ["mappo"] if options.quick else ["mappo", "masac"]


def resume(item: str, options: argparse.Namespace, clock: Clock) -> Iterator[dict]:
    """Train, go back to a checkpoint, resume: the last checkpoints must be bitwise identical."""
    half = 1 if options.quick else 5
    with tempfile.TemporaryDirectory() as scratch:
        whole, again = Path(scratch, "whole"), Path(scratch, "again")
        runs.fit(whole, [*overrides(item, options), f"trainer.keep_every={half}", *runs.length(2 * half)])
        runs.fit(runs.cut_back(whole, again, half), [f"resume={again}"])
        one, other = runs.content(whole), runs.content(again)
    said = runs.difference(one, other)
    same = f"{2 * half} iterations, resumed after {half}: sha256 {runs.digest(one)} both times"
    yield verdict(f"resume/{item}", f"bitwise resume, {item}", not said, said or same)


def captures(options: argparse.Namespace) -> list[str]:
    """Updates of each kind; of the environments that come with the framework, one that is work of the GPU alone."""
    return ["mappo", "mappo, memory"] if options.quick else list(RUNS)


def capture(item: str, options: argparse.Namespace, clock: Clock) -> Iterator[dict]:
    """The same run with `trainer.capture` on and off: what came of it, and seconds of both stages."""
    count = 6 if options.quick else ITERATIONS
    states, watches, replays = {}, {}, {}
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", NotCaptured)
        for how in ("true", "false"):
            watch, folder = runs.Watch(Clock(1e9)), Path(scratch, how)
            more = [f"trainer.capture={how}", *runs.length(count)]
            trainer, task, _ = runs.fit(folder, [*overrides(item, options), *more], [watch])
            states[how], watches[how] = runs.content(folder), watch
            if how == "true":
                update = trainer.updater.device_update
                replays["updates"] = _replays(update and update.graphed) + _replays(update and update.epochs)
                replays["rollouts"] = _replays(getattr(task.collector, "graph", None))
            del trainer, task
    said = runs.difference(states["true"], states["false"])
    refused = [str(each.message) for each in warned if issubclass(each.category, NotCaptured)]
    counted = ", ".join(f"{many} {name} replayed" if many else f"no {name} replayed" for name, many in replays.items())
    message = "; ".join([said or f"same bits after {count} iterations", counted, *refused])
    asked = [replays["updates"]] if item in STEP_BY_STEP else replays.values()
    passed = not said and all(asked) and not refused
    yield verdict(f"capture/{item}", f"graphs against plain, {item}", passed, message, replays=replays)
    for stage in ("collect", "update"):
        ours, plain = (getattr(watches[how], stage)[-max(1, count // 4) :] for how in ("true", "false"))
        yield compared(f"capture/{item}/{stage}", f"{stage}, {item}", "without graphs", "s per iteration", ours, plain)


def _replays(work: GraphedWork | None) -> int:
    """How often the graphs of minibatches, epochs or rollouts ran; 0 where there are none."""
    return sum(graph.runs for graph in work.graphs.values()) if work is not None else 0


def learns(options: argparse.Namespace) -> list[str]:
    """One run."""
    return ["balance"]


def learn(item: str, options: argparse.Namespace, clock: Clock) -> Iterator[dict]:
    """Seconds to a mean return of 40 on balance with the defaults, from building the run to the evaluation.

    Its kernel is kept from the parts before.
    """
    target = -1e9 if options.quick else TARGET
    stop = ["callbacks=early_stopping", f"callbacks.early_stopping.target={target}",
            "callbacks.early_stopping.patience=null", "task.eval_deterministic=false"]  # fmt: skip
    sizes = [*TINY, "task.eval_episodes=2", "trainer.evaluate_every=1"] if options.quick else []
    run = [f"env=vmas/{scenario(options)}", "algo=mappo", *stop, f"device={options.device}", "trainer.progress=off"]
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        _, task, summary = runs.fit(Path(folder), [*run, *sizes], [runs.Watch(clock)])
    took = time.perf_counter() - began
    reached = str(summary["stopped"]).endswith(f"the target is {target:.4g}")
    final = summary["final"]["episode_return"]["mean"]
    said = f"a mean return of {final:.1f} after {summary['frames']:,} frames in {took:.1f} s"
    said += "" if reached else f": {summary['stopped'] or 'its budget is used up'}"
    title = f"{scenario(options)} to a mean return of {target:.4g}"
    yield verdict(f"learn/{item}", title, reached, said)
    if reached:
        peak = torch.cuda.max_memory_allocated() / 1e9
        yield figure(f"learn/{item}/seconds", title, took, "s",
                     frames=summary["frames"], path=task.env.path, peak_memory_gb=peak)  # fmt: skip


def median_of_last(values: list[float], warm_up: int) -> float:
    """The median without the first `warm_up`, or of the last one where there are no more."""
    return statistics.median(values[warm_up:] or values[-1:])
