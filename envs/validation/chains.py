"""Fifty chained steps on the kernel path and on the eager path, every scenario; prints a table.

Both start from one state and see the same actions, then run on their own. A chain of steps amplifies rounding where
bodies touch, so a drift alone proves nothing. Two more environments tell: a probe is put into the kernel's state before
every step and steps eagerly, which shows whether each single step of the kernel is right; and an eager chain starts
from positions with other last bits, which shows how far rounding alone carries the simulator from itself.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from envs.base import EnvError, Transition
from envs.vmas.env import VmasEnv
from envs.vmas.simulator import scenario_names

TOLERANCE = 1e-4  # of observations and rewards, relative to max(1, |eager value|)


@dataclass
class Chain:
    """What `steps` chained steps of a scenario showed; errors are relative to max(1, |eager value|).

    step: largest error of a single step from the same state; step_flips: environments whose done it changed.
    chain: largest error of the chains among environments that have not drifted. drifted: environments that came apart
    by more than TOLERANCE, by the step at which they did. flips: other dones in environments that have not drifted.
    shaken: environments in which the eager chain so drifts from an eager chain that starts with other last bits.
    """

    scenario: str
    num_envs: int
    why: str = ""
    step: float = 0.0
    step_flips: int = 0
    chain: float = 0.0
    flips: int = 0
    drifted: dict[int, int] = field(default_factory=dict)
    shaken: int = 0
    ended: int = 0

    @property
    def drifters(self) -> int:
        return sum(self.drifted.values())


def apart(a: Transition, b: Transition) -> Tensor:
    """Largest relative error of observation, reward and info in each environment: float32 [E]."""
    pairs = [(a.next_observation[n], v) for n, v in b.next_observation.items()]
    pairs += [(a.reward[n], v) for n, v in b.reward.items()]
    pairs += [(a.info[n][k], v) for n, values in b.info.items() for k, v in values.items()]
    worst = torch.zeros(len(b.terminated))
    for ours, theirs in pairs:
        ours, theirs = ours.float().flatten(1), theirs.float().flatten(1)
        if theirs.shape[1] == 0:
            continue
        error = (ours - theirs).abs() / theirs.abs().clamp(min=1)
        error = torch.where((ours == theirs) | (ours.isnan() & theirs.isnan()), 0.0, error).nan_to_num(torch.inf)
        worst = torch.maximum(worst, error.amax(1))
    return worst


def flipped(a: Transition, b: Transition) -> Tensor:
    """Environments whose terminated or truncated differ, or those of an agent: bool [E]."""
    differ = (a.terminated != b.terminated) | (a.truncated != b.truncated)
    for name, flags in b.agent_terminated.items():
        other = (a.agent_terminated[name] != flags) | (a.agent_truncated[name] != b.agent_truncated[name])
        differ |= other.any(-1)
    return differ


def chain(
    scenario: str, num_envs: int = 32, steps: int = 50, seed: int = 0, shake: bool = True, **settings: Any
) -> Chain:
    """Run the chains; `why` of the result is set where the scenario has no kernel. shake: also the shaken one.

    settings: further ones of `VmasEnv`.
    """
    result = Chain(scenario, num_envs)
    settings = {"scenario": scenario, "num_envs": num_envs, "max_steps": 100, "seed": seed, **settings}
    try:
        fast = VmasEnv(**settings, fast="kernel")
    except EnvError as error:
        result.why = str(error)
        return result
    eager, third = (VmasEnv(**settings, fast="off") for _ in range(2))
    for env in (fast, eager):
        env.reset(seed)
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.rand(entity.state.pos.shape, generator=generator) - 0.5 for entity in eager.simulator.world.entities]
    shaken = _shaken(eager, settings, noise) if shake else None
    together, unshaken = torch.ones(2, num_envs, dtype=torch.bool)
    for t in range(steps):
        action = eager.random_action(generator)
        third.restore(fast.snapshot())
        ours, theirs, single = fast.step(action), eager.step(action), third.step(action)
        result.step = max(result.step, float(apart(ours, single).max()))
        result.step_flips += int(flipped(ours, single).sum())
        if shaken is not None:
            unshaken &= apart(shaken.step(action), theirs) <= TOLERANCE
        error = apart(ours, theirs)
        leaves = together & (error > TOLERANCE)
        if leaves.any():
            result.drifted[t + 1] = int(leaves.sum())
            together &= ~leaves
        result.flips += int((flipped(ours, theirs) & together).sum())
        if together.any():
            result.chain = max(result.chain, float(error[together].max()))
        result.ended += int(theirs.done.sum())
    result.shaken = int((~unshaken).sum())
    return result


def _shaken(eager: VmasEnv, settings: dict, noise: list[Tensor]) -> VmasEnv:
    """An environment in the state of another one, but for the last bits of the positions."""
    shaken = VmasEnv(**settings, fast="off")
    shaken.restore(eager.snapshot())
    for entity, change in zip(shaken.simulator.world.entities, noise, strict=True):
        entity.state.pos = entity.state.pos * (1 + 2.4e-7 * change)
    return shaken


def row(chain: Chain) -> str:
    """One line of the table."""
    if chain.why:
        return f"| {chain.scenario} | eager: see the table of coverage | | | | | | |"
    drift = ", ".join(f"{n} at step {t}" for t, n in list(chain.drifted.items())[:3])
    more = " …" if len(chain.drifted) > 3 else ""
    drift = f"{chain.drifters} of {chain.num_envs}{': ' if drift else ''}{drift}{more}"
    return (
        f"| {chain.scenario} | {chain.step:.0e} | {chain.step_flips} | {chain.chain:.0e} | {chain.flips} | "
        f"{drift} | {chain.shaken} | {chain.ended} |"
    )


def main() -> None:
    """Print the table; progress goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("scenarios", nargs="*", default=scenario_names(), help="default: all")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        "| scenario | single step, error | its other dones | chain, error | other dones | drifted | "
        "drifted from itself | ended |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in args.scenarios:
        began = time.perf_counter()
        print(row(chain(name, args.num_envs, args.steps)), flush=True)
        print(f"{name}: {time.perf_counter() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
