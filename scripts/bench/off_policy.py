"""Gradient steps from a replay buffer against BenchMARL's, on all cores and on one, and their share of the peak."""

import argparse
from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import machine, sides
from bench.timing import Clock, alternate, compared
from marl.config import compose
from marl.launch import build

ALGORITHMS = ("maddpg", "masac", "qmix")
STEPS = 1000  # gradient steps of an iteration, BenchMARL's default
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def settings(name: str, num_envs: int, steps: int, updates: int, minibatch: int, device: str) -> list[str]:
    """Overrides of scripts/train.py: BenchMARL's settings of this algorithm on balance, in these sizes."""
    return [f"experiment=benchmarl_{name}", f"env.num_envs={num_envs}", f"algo.rollout_steps={steps}",
            f"algo.updates={updates}", f"algo.minibatch_size={minibatch}", f"device={device}"]  # fmt: skip


def products(overrides: list[str]) -> float:
    """FLOP of the matrix products of a gradient step: what torch counts of the loss and its gradients."""
    config = compose.check(compose.compose(["frames=1_000_000_000", "trainer.progress=off", *overrides]))
    task = build.build_task(config)
    task.collect(0)
    batch = next(iter(task.batches(0)))
    with FlopCounterMode(display=False) as counter:
        task.loss(batch)["loss"].backward()
    return float(counter.get_total_flops())


def peak(device: str, threads: int | None, seconds: float) -> float:
    """GFLOP/s of float32 matrix products, by so many threads (None: torch's own number)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return max(machine.gemm_peak(device, seconds).values())
    finally:
        torch.set_num_threads(before)


def off_policy(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """Balance, 60 environments x 100 steps and minibatches of 128 frames, against BenchMARL's: steps and iterations.

    What is asked for in turn is an iteration of 200 gradient steps. An iteration of 1,000 is the rollout and five times
    the update. BenchMARL's threads wait by OpenMP's own rule, with which it is faster here. `peak share`: FLOP of a
    step's matrix products, over its time, as a share of the peak of float32 `mm` on as many threads.
    """
    num_envs, steps, updates, minibatch = (8, 10, 5, 16) if options.quick else (60, 100, 200, 128)
    for threads, many in ((None, "all cores"), (1, "one thread")):
        rate = peak(options.device, threads, 0.02 if options.quick else 0.4)
        for name in ALGORITHMS:
            overrides = settings(name, num_envs, steps, updates, minibatch, options.device)
            alone = ONE_THREAD if threads else {}
            waits = {"OMP_WAIT_POLICY": None}  # by OpenMP's own rule, with which BenchMARL is faster on all cores
            more = ["--discrete"] if name == "qmix" else []
            peer = sides.benchmarl(options.peers, "train", "--algorithm", name, "--envs", num_envs, "--steps", steps,
                                   "--updates", updates, "--minibatch", minibatch, "--device", options.device, *more,
                                   environment=alone | waits)  # fmt: skip
            our_side = sides.ours("train", *overrides, environment=alone)
            with sides.together(peer, our_side):
                replies = in_turn(our_side, peer, options.rounds, Clock(seconds / 6))
            yield from rows(name, many, replies, updates, products(overrides) * 1e-9, rate)


def in_turn(our_side: sides.Side, peer: sides.Side, rounds: int, clock: Clock) -> dict[str, list[dict]]:
    """What both sides said of iterations, asked in turn; the first of each, a warm-up, is left out."""
    replies: dict[str, list[dict]] = {"ours": [], "peer": []}

    def ask(name: str, side: sides.Side) -> float:
        replies[name].append(side.ask(times=1))
        return replies[name][-1]["iteration_s"]

    alternate({"ours": lambda: ask("ours", our_side), "peer": lambda: ask("peer", peer)}, rounds, clock, warm_up=1)
    return {name: answers[1:] for name, answers in replies.items()}


def rows(name: str, many: str, replies: dict[str, list[dict]], updates: int, gflop: float, rate: float) -> list[dict]:
    """Rows of the results: ms per gradient step, with the share of the peak, `rate` GFLOP/s; s per whole iteration.

    gflop: of a gradient step's matrix products.
    """
    step = {side: [1e3 * r["update_s"] / updates for r in answers] for side, answers in replies.items()}
    whole = {
        side: [r["collect_s"] + STEPS / updates * r["update_s"] for r in answers] for side, answers in replies.items()
    }
    key, title = f"off_policy/{name}/{many.replace(' ', '_')}", f"{name.upper()} on balance, {many}"
    row = compared(f"{key}/step", f"{title}: a gradient step", "BenchMARL", "ms", step["ours"], step["peer"])
    share, their_share = (100 * gflop / (1e-3 * row[side]) / rate for side in ("ours", "theirs"))
    row |= {"gflop": gflop, "peak_gflop_per_s": rate, "peak_share_%": share, "their_peak_share_%": their_share}
    return [
        row,
        compared(f"{key}/iteration", f"{title}: an iteration", "BenchMARL", "s", whole["ours"], whole["peer"],
                 ours_collect_s=replies["ours"][-1]["collect_s"], peer_collect_s=replies["peer"][-1]["collect_s"]),
    ]  # fmt: skip
