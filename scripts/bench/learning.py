"""Collection and training against BenchMARL, TorchRL's collector and JaxMARL's IPPO, each side a process kept alive."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import sides
from bench.simulation import BALANCE
from bench.timing import Clock, alternate, compared, figure

TARGET = 40.0  # mean return on balance
REFERENCE = [  # BenchMARL's fine-tuned settings; conf/env/vmas holds its tasks' keyword arguments
    "algo=mappo", "algo.gamma=0.9", "algo.lam=0.9", "algo.clip=0.2", "algo.entropy_coef=0", "algo.critic_coef=1",
    "algo.value_loss=l2", "algo.normalize_advantage=none", "algo.init_std=1.0", "network.hidden=[256,256]",
    "network.activation=tanh", "optimizer.lr=5e-5", "optimizer.kwargs.eps=1e-6", "scheduler=constant",
    "trainer.grad_clip=5", "trainer.threads=null",  # all cores, as every library takes by itself
]  # fmt: skip
# JaxMARL's baselines/IPPO/config/ippo_ff_mpe.yaml; its minibatch of 1,536 rows is 512 frames of 3 agents.
JAX_SHAPES = [
    "algo=ippo", "env=vmas/mpe/simple_spread", "env.num_envs=16", "env.continuous_actions=false", "env.max_steps=25",
    "algo.rollout_steps=128", "algo.epochs=4", "algo.minibatch_size=512", "algo.gamma=0.99", "algo.lam=0.95",
    "algo.clip=0.2", "algo.entropy_coef=0.01", "algo.critic_coef=0.5", "algo.value_clip=0.2",
    "algo.normalize_advantage=batch", "network.hidden=[64,64]", "network.activation=tanh", "network.init=orthogonal",
    "optimizer.lr=2.5e-4", "trainer.grad_clip=0.5", "scheduler=linear",
]  # fmt: skip


def ours_sized(scenario: str, num_envs: int, steps: int, minibatch: int, device: str, *more: str) -> list[str]:
    """Overrides of scripts/train.py: BenchMARL's settings in these sizes."""
    folder = "mpe/simple_spread" if scenario == "simple_spread" else scenario
    return [*REFERENCE, f"env=vmas/{folder}", f"env.num_envs={num_envs}", f"algo.rollout_steps={steps}",
            f"algo.minibatch_size={minibatch}", f"device={device}", *more]  # fmt: skip


def benchmarl_sized(what: str, task: str, num_envs: int, steps: int, minibatch: int, device: str, *more) -> tuple:
    """Arguments of scripts/peers/benchmarl_side.py for the same."""
    return (what, "--task", task, "--envs", num_envs, "--steps", steps, "--minibatch", minibatch, "--device", device,
            *more)  # fmt: skip


def rollouts(our_side: sides.Side, peer: sides.Side, rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of a rollout on both sides; ours is the mean of three, which it takes less time for than a peer's one."""
    calls = {"ours": lambda: our_side.ask(times=3)["collect_s"], "peer": lambda: peer.ask()["collect_s"]}
    taken = alternate(calls, rounds, Clock(seconds))
    return taken["ours"], taken["peer"]


def collection(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """100 steps of policy (256x256 tanh), sampling, simulation, auto-reset and storing, against BenchMARL's."""
    steps = 10 if options.quick else 100
    sizes_run = [("balance", 60), ("balance", 600)]
    sizes_run += [(name, 600) for name in ("navigation", "simple_spread", "transport", "sampling", "football")]
    sizes_run = [("balance", 8)] if options.quick else sizes_run
    for scenario, num_envs in sizes_run:
        steps = 50 if scenario == "football" else steps  # the slowest; its episodes of 500 steps end in neither
        sizes = (scenario, num_envs, steps, num_envs * steps, options.device)
        peer = sides.benchmarl(options.peers, *benchmarl_sized("collect", *sizes))
        our_side = sides.ours("collect", *ours_sized(*sizes))
        with sides.together(peer, our_side):
            ours, theirs = rollouts(our_side, peer, options.rounds, seconds / len(sizes_run))
        yield compared(f"collection/{scenario}/{num_envs}", f"{scenario}, {num_envs:,} environments", "BenchMARL",
                       f"s per {steps} steps", ours, theirs, path=our_side.ready["path"])  # fmt: skip


def torchrl(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """The same on balance against TorchRL's own collector over its own VMAS wrapper."""
    steps = 10 if options.quick else 100
    env_counts = (8,) if options.quick else (60, 600)
    for num_envs in env_counts:
        peer = sides.torchrl("--envs", num_envs, "--steps", steps, "--device", options.device,
                             "--scenario-kwargs", json.dumps(BALANCE))  # fmt: skip
        sizes = ("balance", num_envs, steps, num_envs * steps, options.device)
        our_side = sides.ours("collect", *ours_sized(*sizes))
        with sides.together(peer, our_side):
            ours, theirs = rollouts(our_side, peer, options.rounds, seconds / len(env_counts))
        yield compared(f"torchrl/balance/{num_envs}", f"balance, {num_envs:,} environments", "TorchRL's collector",
                       f"s per {steps} steps", ours, theirs, path=our_side.ready["path"])  # fmt: skip


def iterations(
    our_side: sides.Side, peer: sides.Side, times: int, rounds: int, clock: Clock, warm_up: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of an iteration of both sides (means of `times` in a row); medians of their stages, where they tell."""
    replies: dict[str, list[dict]] = {"ours": [], "peer": []}

    def ask(name: str, side: sides.Side) -> float:
        replies[name].append(side.ask(times=times))
        return replies[name][-1]["iteration_s"]

    calls = {"ours": lambda: ask("ours", our_side), "peer": lambda: ask("peer", peer)}
    taken = alternate(calls, rounds, clock, warm_up)
    stages = {
        f"{name}_{stage}_s": statistics.median(answer[f"{stage}_s"] for answer in answers[warm_up:])
        for name, answers in replies.items()
        for stage in ("collect", "update")
        if f"{stage}_s" in answers[-1]
    }
    return taken, stages


def end_to_end(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """Whole iterations of training on balance, 60 environments x 100 steps, minibatch 400, against BenchMARL's."""
    num_envs, steps, minibatch = (8, 10, 40) if options.quick else (60, 100, 400)
    sizes = ("balance", num_envs, steps, minibatch, options.device)
    for epochs, share, warm_up in ((45, 0.8, 0), (5, 0.2, 1)):
        peer = sides.benchmarl(options.peers, *benchmarl_sized("train", *sizes), "--epochs", epochs)
        our_side = sides.ours("train", *ours_sized(*sizes, f"algo.epochs={epochs}"))
        with sides.together(peer, our_side):
            taken, more = iterations(our_side, peer, 1, options.rounds, Clock(seconds * share), warm_up)
        yield compared(f"end_to_end/{epochs}", f"balance, {num_envs * steps:,} frames, {epochs} epochs", "BenchMARL",
                       "s per iteration", taken["ours"], taken["peer"], **more)  # fmt: skip


def jax_ippo(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """IPPO on simple_spread at the default shapes of JaxMARL's baseline, all of it jitted there."""
    times = 1 if options.quick else 10
    peer = sides.jaxmarl(options.peers, "ippo")
    our_side = sides.ours("train", *JAX_SHAPES)
    with sides.together(peer, our_side):
        taken, more = iterations(our_side, peer, times, options.rounds, Clock(seconds), 1)
    rates = {name: our_side.ready["frames"] / statistics.median(values) for name, values in taken.items()}
    yield compared("jax_ippo", "simple_spread, 16 x 128 frames, 4 epochs x 4 minibatches, 64x64", "JaxMARL's IPPO",
                   "s per iteration", taken["ours"], taken["peer"], ours_frames_per_s=rates["ours"],
                   theirs_frames_per_s=rates["peer"], **more, path=our_side.ready["path"])  # fmt: skip


def train_to_target(seed: int, target: float) -> tuple[float, dict]:
    """(seconds of the whole process, summary.json) of scripts/train.py from an empty kernel cache to the target."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, str(sides.ROOT / "scripts" / "train.py"), "algo=mappo", f"seed={seed}",
            "callbacks=early_stopping", f"callbacks.early_stopping.target={target}",
            "callbacks.early_stopping.patience=null", "task.eval_deterministic=false", f"hydra.run.dir={folder}/run",
        ]  # fmt: skip
        path = os.pathsep.join(filter(None, [str(sides.ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path, "MARL_KERNEL_CACHE": f"{folder}/kernels"}
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise sides.SideError(f"scripts/train.py ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return seconds, json.loads(Path(folder, "run", "summary.json").read_text())


def learn(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """Wall-clock of whole processes to a mean return of 40 on balance: our defaults, BenchMARL's fine-tuned ones.

    Ours ends when an evaluation of the sampling policy (200 episodes) reaches the target, theirs when the episodes of
    a training batch do. Each of our runs has another seed. BenchMARL runs once, for `--learn-seconds` at most: where
    it has not arrived by then the ratio is a lower bound.
    """
    target = -1e9 if options.quick else TARGET
    clock, ours, summaries = Clock(seconds), [], []
    for seed in range(options.rounds):
        took, summary = train_to_target(seed, target)
        if not str(summary["stopped"]).endswith(f"the target is {target:.4g}"):
            raise sides.SideError(f"seed {seed} ended its budget below a mean return of {target}: {summary['final']}")
        ours.append(took)
        summaries.append(summary)
        if clock.over():
            break
    mine = statistics.median(ours)
    frames = statistics.median(summary["frames"] for summary in summaries)
    yield figure("learn/ours", f"balance to a mean return of {TARGET:.0f}, our defaults", mine, "s", all=ours,
                 frames=frames, rounds=len(ours))  # fmt: skip
    if options.learn_seconds:
        yield benchmarl_to_target(options, target, mine)


def benchmarl_to_target(options: argparse.Namespace, target: float, ours: float) -> dict:
    """The row of BenchMARL's one run, ended after `--learn-seconds`."""
    sizes = ("balance", 8, 100, 400, "cpu") if options.quick else ("balance", 600, 100, 4096, options.device)
    last: dict = {"frames": 0, "episode_return": None, "reached": False}
    began = time.perf_counter()
    with sides.benchmarl(options.peers, *benchmarl_sized("learn", *sizes, "--until", target)) as peer:
        try:
            while not last["reached"]:
                last = peer.answer(max(0.1, options.learn_seconds - (time.perf_counter() - began)))
        except sides.SideError:
            if peer.process.poll() is not None:  # it ended by itself, which it should not
                raise
        took = time.perf_counter() - began
        peer.process.kill()
    return compared("learn/benchmarl", f"balance to a mean return of {TARGET:.0f}", "BenchMARL, fine-tuned", "s",
                    [ours], [took], bound=not last["reached"], their_frames=last["frames"],
                    their_return=last["episode_return"])  # fmt: skip
