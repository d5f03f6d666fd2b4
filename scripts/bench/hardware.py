"""How close to the hardware: a rollout over what its matrix products and activations need, an update over GEMM's peak.

And an MLP's forward and backward pass by our kernel, over the same by torch's layers.

Peaks are measured in the same process, right before; the networks are BenchMARL's, 256x256 tanh.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator

import torch
from torch import nn

from bench import machine
from bench.learning import ours_sized
from bench.timing import Clock, alternate, figure, timed
from marl.callbacks.base import Callback
from marl.config import compose
from marl.engine.run_view import RunView
from marl.launch import build
from marl.networks import MLP

STEPS = 100
MLPS = ((1_536, 14, 64, 5), (1_600, 16, 256, 4), (16_384, 16, 256, 4))  # rows, inputs, width of two layers, outputs


class Updates(Callback):
    """Keeps the seconds of each iteration's update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_iteration(self, trainer: RunView, record: dict) -> None:
        self.seconds.append(record["update_seconds"])


def weights(module: nn.Module) -> list[torch.Tensor]:
    """The matrices [out, in] that each row of the input is multiplied by, first to last."""
    return [p for p in module.parameters() if p.dim() == 2]


def products(module: nn.Module, rows: int, trained: bool) -> float:
    """FLOP of the matrix products of `rows` rows: forward, and where `trained` backward (the input has no gradient)."""
    forward = [2.0 * rows * w.numel() for w in weights(module)]
    return sum(forward) + (2 * sum(forward) - forward[0] if trained else 0.0)


def activations(module: nn.Module, rows: int) -> float:
    """Elements of the hidden layers."""
    return float(rows * sum(w.shape[0] for w in weights(module)[:-1]))


def assemble(config: dict):
    """A task ready to collect, on the settings' number of threads."""
    trainer, task = build.build_trainer(config), build.build_task(config)
    return trainer, task


def rollout_over_floor(options: argparse.Namespace, peak: float, seconds: float) -> Iterator[dict]:
    """Seconds of a rollout over (FLOP / GEMM peak + activations / tanh peak), for 60 and 600 environments."""
    for num_envs in (8,) if options.quick else (60, 600):
        overrides = ours_sized("balance", num_envs, STEPS, num_envs * STEPS, options.device)
        _, task = assemble(compose.check(compose.compose(overrides)))
        task.collector.reset(0)
        actor = next(iter(task.loss.actors.values()))
        per_step = num_envs * next(iter(task.env.spec.groups.values())).n_agents
        rate = machine.tanh_peak(per_step, options.device)
        gemm_s = products(actor, per_step * STEPS, trained=False) / peak * 1e-9
        tanh_s = activations(actor, per_step * STEPS) / rate * 1e-9
        taken = alternate(
            {"rollout": lambda task=task: timed(lambda: task.collector.collect(task.policy_generator), options.device)},
            max(options.rounds, 5), Clock(seconds),
        )["rollout"]  # fmt: skip
        took = statistics.median(taken)
        yield figure(f"floor/rollout/{num_envs}", f"rollout of balance, {num_envs:,} environments x {STEPS} steps",
                     took / (gemm_s + tanh_s), "x floor", rollout_s=took, gemm_s=gemm_s, tanh_s=tanh_s,
                     tanh_gelements=rate, rounds=len(taken))  # fmt: skip


def update_share(options: argparse.Namespace, peak: float) -> Iterator[dict]:
    """FLOP of a minibatch's update (actor and critic, forward and backward) per second, over GEMM's peak.

    The update is the engine's: gathering the rows, loss, backward, clipping, the optimiser's step.
    """
    for minibatch in (40,) if options.quick else (400, 4096):
        num_envs, steps = (8, 10) if options.quick else (600, 50)
        overrides = ours_sized("balance", num_envs, steps, minibatch, options.device, "algo.epochs=1",
                               "task.eval_episodes=1", "trainer.evaluate_every=0", "trainer.checkpoint_every=0",
                               "trainer.progress=off", f"trainer.max_iterations={max(options.rounds, 5) + 1}",
                               "frames=1_000_000_000")  # fmt: skip
        config = compose.check(compose.compose(overrides))
        trainer, task = assemble(config)
        watch = Updates()
        with tempfile.TemporaryDirectory() as folder:
            setup = {**build.build_setup(config), "loggers": [], "callbacks": [watch]}
            trainer.fit(task, folder, **setup)
        agents = next(iter(task.env.spec.groups.values())).n_agents
        actor, critic = (next(iter(parts.values())) for parts in (task.loss.actors, task.loss.critics))
        work = products(actor, minibatch * agents, trained=True) + products(critic, minibatch, trained=True)
        took = statistics.median(watch.seconds[1:]) / task.minibatches
        yield figure(f"floor/update/{minibatch}", f"update, minibatch {minibatch:,} frames x {agents} agents",
                     100 * work * 1e-9 / took / peak, "% of GEMM peak", update_ms=1e3 * took, gflop=work * 1e-9,
                     rounds=len(watch.seconds) - 1)  # fmt: skip


def mlp_passes(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """GFLOP/s of an MLP's forward and backward pass on the CPU, and how many times as fast as its layers one by one."""
    for rows, inputs, width, outputs in MLPS[:1] if options.quick else MLPS:
        network, x = MLP(inputs, outputs, (width, width)), torch.randn(rows, inputs)
        gradient, times = torch.randn(rows, outputs), max(1, 60_000 // rows)

        def passes(plain: bool, network=network, x=x, gradient=gradient, times=times) -> float:
            network.plain = plain

            def work() -> None:
                for _ in range(times):
                    network(x).backward(gradient)
                    network.zero_grad()

            return timed(work) / times

        taken = alternate(
            {"kernel": lambda p=passes: p(True), "layers": lambda p=passes: p(False)}, options.rounds, Clock(seconds)
        )
        kernel, layers = (statistics.median(taken[side]) for side in ("kernel", "layers"))
        yield figure(f"mlp/{rows}/{width}", f"MLP {width} x {width}, {rows:,} rows, forward and backward",
                     products(network, rows, trained=True) * 1e-9 / kernel, "GFLOP/s", kernel_ms=1e3 * kernel,
                     layers_ms=1e3 * layers, times_the_layers=layers / kernel, rounds=len(taken["kernel"]))  # fmt: skip


def hardware(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """Peaks of the machine, then the rollout, the update and an MLP's passes over them."""
    short = 0.02 if options.quick else 0.4
    peaks = machine.gemm_peak(options.device, short)
    peak = max(peaks.values())
    yield figure("peak/gemm", "float32 matrix products, peak", peak, "GFLOP/s", **peaks)
    yield figure("peak/memory", "memory bandwidth (triad)", machine.bandwidth(options.device, short), "GB/s")
    yield from rollout_over_floor(options, peak, seconds / 4)
    yield from update_share(options, peak)
    if not options.device.startswith("cuda"):
        yield from mlp_passes(options, seconds / 8)
