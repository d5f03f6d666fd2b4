"""Checks of the kernels on the card: every scenario's step against the simulator there, and gradient kernels."""

import argparse
import os
import warnings
from collections.abc import Iterator

from bench.gpu.parts import verdict
from bench.timing import Clock
from envs.base import EnvError
from envs.validation import on_card
from envs.vmas.simulator import scenario_names

WITHOUT = ("debug/het_mass", "debug/waterfall", "road_traffic")  # no kernel on any device: docs/kernels.md says why
SLOW = ("debug/pollock", "joint_passage", "ball_passage", "debug/waterfall", "debug/kinematic_bicycle", "discovery")
QUICK = ["mpe/simple_spread"]
GRADIENTS = ["mpe/simple_spread", "balance", "transport", "wheel", "dispersion", "give_way", "navigation"]
MANY = 4  # cores from which the longest go first; on fewer they would keep the others waiting


def steps(options: argparse.Namespace) -> list[str]:
    """All scenarios."""
    if options.quick:
        return QUICK
    first, names = (os.cpu_count() or 1) >= MANY, scenario_names()
    return sorted(names, key=lambda name: (name in SLOW) != first)


def step(item: str, options: argparse.Namespace, clock: Clock) -> Iterator[dict]:
    """One scenario's kernel against the simulator, both on the card."""
    warnings.simplefilter("ignore")
    key = f"kernels/{item}"
    try:
        found = on_card.compare_step(item, options.device, 4 if options.quick else on_card.STEPS)
    except EnvError as error:  # road_traffic of VMAS 1.5.2 mixes devices on a GPU
        if item not in WITHOUT:
            raise
        found = {"why": str(error)}
    if found["why"]:
        yield verdict(key, item, None if item in WITHOUT else False, f"no kernel: {found['why']}")
        return
    report, difference = found["report"], found["difference"]
    worst, largest = (max(report[kind].values(), default=0.0) for kind in ("worst", "largest"))
    said = difference or (f"{report['compared']:,} steps, {report['astray']} astray, {report['flips']} other dones, "
                          f"largest relative error {worst:.0e}")  # fmt: skip
    if not difference and largest > worst:
        said += f" ({largest:.0e} where the simulator's own step amplifies rounding as much)"
    more = {name: found[name] for name in ("registers", "local_bytes") if name in found}
    yield verdict(key, item, not difference, said, operations=found["operations"], **more,
                  compile_s=found["seconds"]["compile"], report=report)  # fmt: skip


def gradients(options: argparse.Namespace) -> list[str]:
    """Some scenarios: gradient programs are two to four times as long."""
    return QUICK if options.quick else GRADIENTS


def gradient(item: str, options: argparse.Namespace, clock: Clock) -> Iterator[dict]:
    """One scenario's gradient kernel on the card against differences of its step in double precision."""
    warnings.simplefilter("ignore")
    found, key = on_card.compare_gradient(item, options.device), f"gradients/{item}"
    if found["why"]:
        yield verdict(key, f"gradients of {item}", False, found["why"])
        return
    said = (f"{found['compared']:,} derivatives, {found['astray']} astray, relative error: "
            f"median {found['median']:.0e}, worst {found['worst']:.0e}")  # fmt: skip
    yield verdict(key, f"gradients of {item}", True, said, operations=found["operations"],
                  compile_s=found["seconds"]["compile"])  # fmt: skip
