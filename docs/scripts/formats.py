"""Makes the tables of docs/export.md: what every format costs in exactness, in return and in time.

Usage, each with run directories or zoo/NAME:

    python docs/scripts/formats.py errors RUN…      # against Policy.act on 10,000 recorded observations
    python docs/scripts/formats.py returns RUN…     # 1,000 episodes of raw VMAS, beside evaluate.py's interval
    python docs/scripts/formats.py latency RUN      # one observation at a time on one core

Formats whose packages are missing are left out, and named on standard error. kinds=onnx,int8 takes some of them.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import vmas

from agents.deploy.formats.comparison import errors, recorded
from agents.deploy.formats.recorded import feed, feeds, moments
from agents.deploy.formats.runners import KINDS, Runner, runner
from agents.evaluation.episodes import evaluate, statistics
from agents.evaluation.own_env import own_env
from agents.policies.policy import Policy
from marl.core.errors import UserError
from marl.launch import cli

OBSERVATIONS, EPISODES = 10_000, 1_000
CALLS, ROUNDS = 1_000, 20  # of every format per round
CALIBRATION = 32  # episodes


def runners(policy: Policy, folder: str, kinds: list[str]) -> Iterator[tuple[str, Runner]]:
    """Every format that can be written and run here; int8_static is calibrated on episodes of its own."""
    steps = policy.spec.max_steps or 1
    calibration = feeds(policy, recorded(policy, CALIBRATION * steps, seed=10_000), CALIBRATION)
    for kind in kinds:
        try:
            yield kind, runner(policy, kind, Path(folder), calibration)
        except UserError as error:
            print(f"{kind}: {error}", file=sys.stderr)


def error_table(runs: list[str], kinds: list[str]) -> None:
    """Largest and mean error as shares of the action's range; of choices, how many differ."""
    print("| policy | " + " | ".join(f"`{kind}`" for kind in kinds) + " |\n|" + "---|" * (len(kinds) + 1))
    for run in runs:
        policy = Policy.load(run)
        shard, cells = recorded(policy, OBSERVATIONS, seed=0), dict.fromkeys(kinds, "—")
        with tempfile.TemporaryDirectory() as folder:
            for kind, file in runners(policy, folder, kinds):
                found = errors(policy, file, shard)
                parts = [f"{found.largest:.1e} ({found.mean:.1e})"] if found.numbers else []
                parts += [f"{found.differing:,} of {found.choices:,}"] if found.choices else []
                cells[kind] = ", ".join(parts)
        print(f"| {run} | " + " | ".join(cells.values()) + " |", flush=True)


def return_table(runs: list[str], kinds: list[str]) -> None:
    """Mean returns of each group in raw VMAS, beside the interval of the package's own evaluation."""
    print("| policy | `evaluate.py`, 95 % interval | " + " | ".join(f"`{kind}`" for kind in kinds) + " |")
    print("|" + "---|" * (len(kinds) + 2))
    for run in runs:
        policy = Policy.load(run)
        env = own_env(policy, EPISODES, seed=0)
        played = evaluate(env, policy.actors, seed=0)
        own = {name: statistics(played.group_returns(name)) for name in policy.spec.groups}
        cells = {name: dict.fromkeys(kinds, "—") for name in own}
        with tempfile.TemporaryDirectory() as folder:
            for kind, file in runners(policy, folder, kinds):
                for name, mean in raw_returns(policy, file, EPISODES, seed=0).items():
                    low, high = own[name]["ci95"]
                    cells[name][kind] = f"{mean:.4g}" if low <= mean <= high else f"**{mean:.4g}**"
        for name, found in own.items():  # the sum over groups of a zero-sum game says nothing
            interval = f"{found['mean']:.4g} ({found['ci95'][0]:.4g} to {found['ci95'][1]:.4g})"
            who = f"{run}, {name}" if len(own) > 1 else run
            print(f"| {who} | {interval} | " + " | ".join(cells[name].values()) + " |", flush=True)


def raw_returns(policy: Policy, file: Callable[[Mapping], Mapping], episodes: int, seed: int) -> dict[str, float]:
    """{group: mean return over its agents and the episodes} in VMAS itself, without this package's environment.

    file: inputs by name -> outputs by name.
    """
    node, groups = policy.metadata["env"], policy.spec.groups
    env = vmas.make_env(
        node["scenario"].rpartition("/")[2], num_envs=episodes, seed=seed, max_steps=node["max_steps"],
        continuous_actions=node["continuous_actions"], multidiscrete_actions=node["multi_discrete"],
        terminated_truncated=True, **node["scenario_kwargs"],
    )  # fmt: skip
    names = [agent.name for agent in env.agents]
    observations, memory = env.reset(seed=seed), policy.memory(episodes)  # evaluate's own beginnings
    returns, running = torch.zeros(len(names), episodes), torch.ones(episodes, dtype=torch.bool)
    seen = dict(zip(names, observations, strict=True))
    while running.any():
        inputs = {f"{n}_observation": torch.stack([seen[a] for a in g.agents], 1) for n, g in groups.items()}
        inputs |= {f"{name}_memory": value for name, value in memory.items()}
        outputs = file({name: value.float().numpy() for name, value in inputs.items()})
        memory = {name: torch.from_numpy(outputs[f"{name}_next_memory"]) for name in memory}
        acting = {n: torch.from_numpy(outputs[f"{n}_action"]).unbind(1) for n in groups}
        moves = {a: move for n, g in groups.items() for a, move in zip(g.agents, acting[n], strict=True)}
        observations, rewards, terminated, truncated, _ = env.step([moves[name] for name in names])
        seen = dict(zip(names, observations, strict=True))
        returns += torch.stack(rewards) * running
        running &= ~(terminated | truncated)
    at = {name: row for row, name in enumerate(names)}
    return {name: float(returns[[at[a] for a in g.agents]].mean()) for name, g in groups.items()}


def latency_table(run: str, kinds: list[str]) -> None:
    """Microseconds of single calls at batch 1, every format in turn: the call alone, its inputs ready.

    Where the machine has other work, too, only the processor's time says what a call takes: it stands beside the clock.
    """
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    policy = Policy.load(run)
    now = next(moments(policy, recorded(policy, 1, seed=0), 1))
    inputs, times = feed(policy, now, policy.memory(1)), {}
    with tempfile.TemporaryDirectory() as folder:
        calls = {kind: timer(file, inputs, times.setdefault(kind, [])) for kind, file in runners(policy, folder, kinds)}
    for turn in range(ROUNDS):
        for kind in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            calls[kind]()
    print("| format | median | p99.9 | median, processor | p99.9, processor | calls |\n|---|---|---|---|---|---|")
    for kind, taken in times.items():
        figures = np.percentile(np.array(taken) / 1e3, (50, 99.9), axis=0).T.flatten()  # the clock's first
        print(f"| `{kind}` | {' | '.join(f'{figure:.1f} µs' for figure in figures)} | {len(taken):,} |")
    print(f"\nLoad of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")


def timer(file: Runner, inputs: Mapping[str, np.ndarray], times: list[tuple[int, int]]) -> Callable[[], None]:
    """A round of calls, whose nanoseconds by the clock and by the processor are appended to `times`."""
    prepared = file.prepare(inputs)

    def calls() -> None:
        for _ in range(CALLS // 10):  # what the others have pushed out of the caches comes back
            file.step(prepared)
        for _ in range(CALLS):
            used, began = time.process_time_ns(), time.perf_counter_ns()
            file.step(prepared)
            ended = time.perf_counter_ns()
            times.append((ended - began, time.process_time_ns() - used))

    return calls


def main(arguments: list[str]) -> None:
    """Read the command, print its table."""
    what, *rest = arguments or ["help"]
    chosen = [argument.partition("=")[2].split(",") for argument in rest if argument.startswith("kinds=")]
    runs = [argument for argument in rest if not argument.startswith("kinds=")]
    kinds = chosen[0] if chosen else list(KINDS)
    if what not in ("errors", "returns", "latency") or not runs or not set(kinds) <= set(KINDS):
        raise SystemExit(f"{__doc__}\nkinds: {', '.join(KINDS)}")
    with cli.guard():
        if what == "latency":
            latency_table(runs[0], kinds)
        else:
            {"errors": error_table, "returns": return_table}[what](runs, kinds)


if __name__ == "__main__":
    main(sys.argv[1:])
