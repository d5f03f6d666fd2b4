"""The card: what it is, what it can do at most (a copy, matrix products), and how long kernels take to be made."""

import argparse
import importlib.metadata
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from bench import machine
from bench.gpu import events
from bench.simulation import SCENARIOS
from bench.timing import Clock, figure
from envs.kernel.backends.cuda import compiler as cuda_compiler
from envs.validation.on_card import resources
from envs.vmas.env import VmasEnv
from marl.core.errors import CannotCompile

AIMS = {"balance": 10.0, "navigation": 20.0}  # s of a first start; a kept one: 1
KEPT = 1.0
PEAKS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def items(options: argparse.Namespace) -> list[str]:
    """What it is, then the peaks."""
    return ["machine", "copy", *PEAKS]


def describe(device: str) -> dict:
    """`machine.describe`, and what decides kernels and their speed."""
    about = machine.describe(device)
    properties = torch.cuda.get_device_properties(device)
    about |= {
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
    }
    about |= {name: importlib.metadata.version(name) for name in ("vmas", "torchrl", "tensordict", "numpy")}
    try:
        about["nvrtc"] = cuda_compiler.versions()
    except CannotCompile as error:
        about["nvrtc"] = str(error)
    return about


def rows(item: str, options: argparse.Namespace, clock: Clock) -> Iterator[dict]:
    """One of `items`."""
    torch.set_float32_matmul_precision("highest")
    if item == "machine":
        about = describe(options.device)
        yield figure("card/memory", f"{about['gpu']}, memory", about["memory_gb"], "GB", about=about)
    elif item == "copy":
        numbers = 1 << (16 if options.quick else 28)
        a, b = (torch.zeros(numbers, device=options.device) for _ in range(2))
        times = events.calls_within(lambda: b.copy_(a), 0.01 if options.quick else 0.3)
        took = min(events.seconds(lambda: b.copy_(a), times) for _ in range(3))
        yield figure("card/copy", "memory: a copy, bytes read and written", 8e-9 * numbers / took, "GB/s")
    else:
        size = 64 if options.quick else 8192
        a, b = (torch.randn(size, size, device=options.device, dtype=PEAKS[item]) for _ in range(2))
        out = torch.empty_like(a)
        times = events.calls_within(lambda: torch.mm(a, b, out=out), 0.01 if options.quick else 0.3)
        took = min(events.seconds(lambda: torch.mm(a, b, out=out), times) for _ in range(3))
        yield figure(f"card/{item}", f"matrix products, {item}", 2e-12 * size**3 / took, "TFLOP/s")


def starts(options: argparse.Namespace) -> list[str]:
    """First and kept starts; each in its own process, the kept one after the first."""
    names = ["simple_spread"] if options.quick else list(AIMS)
    return [f"{name}, {how} start" for name in names for how in ("first", "kept")]


def start(item: str, options: argparse.Namespace, clock: Clock) -> Iterator[dict]:
    """Seconds to an environment's first step by a kernel, less the eager path's: empty kernel cache, then kept one."""
    name, how = item.removesuffix(" start").split(", ")
    folder = Path(options.scratch) / f"start_{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    os.environ["MARL_KERNEL_CACHE"] = str(folder)
    scenario, kwargs = SCENARIOS[name]
    torch.zeros(1, device=options.device).add_(1)  # the context, and torch's own first kernel
    whole: dict[str, float] = {}
    for fast in ("off", "kernel"):
        torch.cuda.synchronize()
        began = time.perf_counter()
        env = VmasEnv(scenario, 8 if options.quick else 600, scenario_kwargs=kwargs, device=options.device, fast=fast)
        env.reset(0)
        env.step(env.random_action())
        torch.cuda.synchronize()
        whole[fast] = time.perf_counter() - began
    compilation = env.stepper.compilation
    spent = {f"{stage}_s": seconds for stage, seconds in compilation.facts["seconds"].items()} if how == "first" else {}
    aim = KEPT if how == "kept" else AIMS.get(name, AIMS["balance"])
    yield figure(f"start/{name}/{how}", item, whole["kernel"] - whole["off"], "s over eager", aim_at_most=aim,
                 whole_s=whole["kernel"], eager_s=whole["off"], **spent, operations=compilation.facts["operations"],
                 **resources(compilation))  # fmt: skip
