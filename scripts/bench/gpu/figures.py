"""Figures of balance on the card, by environments: simulation beside raw VMAS, collection, update, whole iterations.

Shares of the limit: the time that bytes need at the measured peak, or FLOP at theirs if that is longer, over the time
taken. A step's FLOP are the operations of its program for each environment.
"""

import argparse
import gc
import itertools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from bench import hardware, learning, simulation
from bench.gpu import events, runs
from bench.gpu.training import median_of_last
from bench.simulation import BALANCE, NEVER, Stepper
from bench.timing import Clock, alternate, compared, figure
from envs.vmas.env import VmasEnv

COUNTS = (600, 6_000, 30_000, 100_000)
STEPS = 100  # of a rollout, as long as an episode: each has one reset of the pool
FEW = 2  # steps of raw VMAS in a round, where one takes longer than a round may
WARM_UP = 13  # iterations until graphs were captured and compared four times
MEASURED = 6  # iterations after these
FRAMES = 62_500  # of a minibatch, at most
HEADLINE = 30_000, 0.05  # environments of VMAS's own figure, and the seconds that 100 steps may take at most
MINIBATCHES = 14  # of an epoch


def items(options: argparse.Namespace) -> list[str]:
    """Numbers of environments."""
    return ["8"] if options.quick else [str(count) for count in COUNTS]


def rows(item: str, options: argparse.Namespace, clock: Clock) -> Iterator[dict]:
    """All figures of one number of environments."""
    num_envs, least = int(item), clock.seconds
    simulated = simulate(num_envs, options, Clock(least / 4))
    yield simulated
    gc.collect()
    torch.cuda.empty_cache()
    yield from train(num_envs, options, clock, simulated)


def simulate(num_envs: int, options: argparse.Namespace, clock: Clock) -> dict:
    """A step of our environment beside one of raw VMAS, both with random actions drawn before and without resets."""
    device, span = options.device, 0.01 if options.quick else 0.25
    theirs = simulation.raw("balance", num_envs, device, BALANCE)
    drawn = itertools.cycle([theirs.get_random_actions() for _ in range(simulation.DRAWN)])
    env = VmasEnv("balance", num_envs, max_steps=STEPS, scenario_kwargs=BALANCE, device=device, pool_every=NEVER)
    stepper = Stepper(env, 16)
    quick = events.calls_within(stepper.into, span, STEPS if not options.quick else FEW)
    slow = events.calls_within(lambda: theirs.step(next(drawn)), span, FEW)
    sides = {
        "ours": events.side(stepper.into, quick, 1e3),
        "vmas": events.side(lambda: theirs.step(next(drawn)), slow, 1e3),
    }
    taken = alternate(sides, options.rounds, clock)
    took = statistics.median(taken["ours"]) * 1e-3
    moved, flop = step_work(env)
    env.refresh_pool()
    pool = events.seconds(env.refresh_pool)
    bar = {"must_be_at_most_s": HEADLINE[1]} if num_envs == HEADLINE[0] else {}
    return compared(f"simulation/{num_envs}", f"simulation, {num_envs:,} environments", "raw VMAS", "ms/step",
                    taken["ours"], taken["vmas"], path=env.path, frames_per_s=num_envs / took,
                    s_per_100_steps=100 * took, **bar, pool_reset_s=pool, bytes_per_frame=moved / num_envs,
                    operations_per_frame=flop / num_envs, **share(options, took, moved, flop))  # fmt: skip


def step_work(env: VmasEnv) -> tuple[float, float]:
    """(bytes that a step by the kernel has to read and write at least, its operations); zeros on the eager path."""
    if env.path == "eager":
        return 0.0, 0.0
    places, operations = env.stepper.compilation.places, env.stepper.compilation.facts["operations"]
    numbers = 2 * len(places.fields) + places.noise
    numbers += sum(count for _, count, _ in places.actions)
    numbers += sum(count * (2 if key in places.restarted else 1) for key, count in places.outputs if key[0] != "info")
    return float(env.num_envs * (4 * numbers + 2)), float(env.num_envs * operations)


def share(options: argparse.Namespace, took: float, moved: float, flop: float) -> dict[str, float]:
    """{"share_of_limit_%": …}; {} where no peak is known, or nothing was counted."""
    copy, products = options.peaks.get("card/copy"), options.peaks.get("card/float32")
    if not copy or not products or not moved + flop:
        return {}
    return {"share_of_limit_%": 100 * max(moved / (copy * 1e9), flop / (products * 1e12)) / took}


def sizes(num_envs: int, options: argparse.Namespace) -> tuple[int, int, int]:
    """(steps of a rollout, frames of a minibatch, epochs)."""
    if options.quick:
        return 4, 16, 1
    return STEPS, min(FRAMES, max(4_096, num_envs * STEPS // MINIBATCHES)), 5 if num_envs <= COUNTS[1] else 1


def train(num_envs: int, options: argparse.Namespace, clock: Clock, simulated: dict) -> Iterator[dict]:
    """Whole iterations of MAPPO with BenchMARL's settings and networks (256x256 tanh), and both of their stages."""
    steps, minibatch, epochs = sizes(num_envs, options)
    warm_up, measured = (1, 2) if options.quick else (WARM_UP, MEASURED)
    watch = runs.Watch(Clock(max(1.0, clock.seconds - clock.spent)))
    overrides = learning.ours_sized("balance", num_envs, steps, minibatch, options.device, *runs.QUIET,
                                    "trainer.checkpoint_every=0", f"algo.epochs={epochs}",
                                    f"trainer.max_iterations={warm_up + measured}")  # fmt: skip
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        _, task, _ = runs.fit(Path(folder), overrides, [watch])
    peak = torch.cuda.max_memory_allocated() / 1e9
    collect, update = (median_of_last(values, warm_up) for values in (watch.collect, watch.update))
    frames, rounds = num_envs * steps, max(1, len(watch.update) - warm_up)
    vmas = simulated["theirs"] * 1e-3 * steps
    agents = next(iter(task.env.spec.groups.values())).n_agents
    actor, critic = (next(iter(parts.values())) for parts in (task.loss.actors, task.loss.critics))
    played = hardware.products(actor, frames * agents, trained=False)
    rows = frames // minibatch * minibatch * epochs
    learned = hardware.products(actor, rows * agents, trained=True) + hardware.products(critic, rows, trained=True)
    (moved, operations), about = step_work(task.env), f"{num_envs:,} environments"
    moved, played = moved * steps, played + operations * steps
    yield compared(f"collection/{num_envs}", f"collection, {about}", "raw VMAS, its steps alone",
                   f"s per {steps} steps", [collect], [vmas], frames_per_s=frames / collect, path=task.env.path,
                   of_iterations=rounds, **share(options, collect, moved, played))  # fmt: skip
    yield figure(f"update/{num_envs}", f"update, {about}, {epochs} epochs, minibatches of {minibatch:,}", update, "s",
                 steps=rows // minibatch, tflop_per_s=learned * 1e-12 / update, of_iterations=rounds,
                 **share(options, update, 0.0, learned))  # fmt: skip
    whole = collect + update
    yield compared(f"end_to_end/{num_envs}", f"end to end, {about}", "raw VMAS, its steps alone", "s per iteration",
                   [whole], [vmas], frames_per_s=frames / whole, peak_memory_gb=peak, of_iterations=rounds,
                   **share(options, whole, moved, played + learned))  # fmt: skip
