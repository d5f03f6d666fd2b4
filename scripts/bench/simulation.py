"""Simulation alone: the environment's step against raw VMAS in this process, and against JaxMARL's jitted step."""

import argparse
import importlib
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator

import torch

from bench import sides
from bench.timing import Clock, alternate, compared, figure, steps_within, timed
from envs.base import EnvError
from envs.vmas.env import VmasEnv
from envs.vmas.simulator import find_scenario, scenario_names

EPISODE = 100  # steps
DRAWN = 8  # sets of actions, used in turn
NEVER = 1 << 40  # pool_every of an environment whose pool is not reset while it is timed
BALANCE = {"n_agents": 4, "package_mass": 5, "random_package_pos_on_line": True}
SCENARIOS = {  # name in tables: scenario, keyword arguments (BenchMARL's tasks)
    "balance": ("balance", BALANCE),
    "navigation": ("navigation", {"n_agents": 3, "collisions": True, "shared_rew": False}),
    "simple_spread": ("mpe/simple_spread", {"n_agents": 3}),
    "transport": ("transport", {"n_agents": 4}),
    "sampling": ("sampling", {"n_agents": 3, "shared_rew": False}),
    "football": ("football", {"n_blue_agents": 3, "n_red_agents": 3, "ai_red_agents": True}),
}


def raw(scenario: str, num_envs: int, device: str, kwargs: dict):
    """VMAS as it comes, without auto-reset and time limit."""
    import vmas

    name = importlib.import_module(find_scenario(scenario).__module__).Scenario()
    return vmas.make_env(name, num_envs=num_envs, device=device, continuous_actions=True, seed=0, **kwargs)


class Stepper:
    """Our environment under pre-drawn actions: `into` steps into buffers as rollouts do, `step` returns new tensors."""

    def __init__(self, env: VmasEnv, steps: int = EPISODE):
        self.env, self.steps = env, steps
        generator = torch.Generator(env.device).manual_seed(0)
        self.actions = itertools.cycle([env.random_action(generator) for _ in range(DRAWN)])
        E, groups, device = env.num_envs, env.spec.groups.items(), env.device
        shapes = {n: (steps, E, g.n_agents) for n, g in groups}
        sizes = {n: g.observation_size for n, g in groups}
        observation, following = ({n: torch.zeros(*s, sizes[n], device=device) for n, s in shapes.items()}
                                  for _ in range(2))  # fmt: skip
        reward = {n: torch.zeros(*s, device=device) for n, s in shapes.items()}
        terminated, truncated = (torch.zeros(steps, E, dtype=torch.bool, device=device) for _ in range(2))
        env.reset(0)
        env.bind_rollout(observation, following, reward, terminated, truncated)
        self.time = 0

    def into(self) -> None:
        self.env.step_into(self.time, next(self.actions))
        self.time = (self.time + 1) % self.steps

    def step(self) -> None:
        self.env.step(next(self.actions))


def per_step(step: Callable[[], object], count: int, device: str, before: Callable[[], object] | None = None):
    """A side for `alternate`: milliseconds per call of `step`, after `before`, which is not timed."""

    def side() -> float:
        if before is not None:
            before()
        return 1e3 * timed(lambda: [step() for _ in range(count)], device) / count

    return side


def against_vmas(name: str, num_envs: int, options: argparse.Namespace, seconds: float) -> list[dict]:
    """Rows of one scenario and number of environments: steps alone, and with resets; `seconds` to alternate in."""
    scenario, kwargs = SCENARIOS[name]
    device, short = options.device, 0.02 if options.quick else 0.2
    theirs = raw(scenario, num_envs, device, kwargs)
    drawn = itertools.cycle([theirs.get_random_actions() for _ in range(DRAWN)])
    settings = {"num_envs": num_envs, "max_steps": EPISODE, "scenario_kwargs": kwargs, "device": device}
    fast, plain = (Stepper(VmasEnv(scenario, **settings, pool_every=NEVER, fast=how), 16) for how in ("auto", "off"))
    whole = Stepper(VmasEnv(scenario, **settings), 16)  # resets its pool once per episode, as in training

    def vmas_step():
        return theirs.step(next(drawn))

    count = steps_within(vmas_step, short, 5, device)
    quick = steps_within(fast.into, short / 2, EPISODE, device)
    resets = []

    def vmas() -> float:
        resets.append(1e3 * timed(theirs.reset, device))
        return per_step(vmas_step, count, device)()

    taken = alternate(
        {
            "vmas": vmas,
            "ours": per_step(fast.into, quick, device),
            "step": per_step(fast.step, quick, device),
            "off": per_step(plain.into, count, device),
            "whole": per_step(whole.into, EPISODE, device),
        },
        options.rounds, Clock(seconds),
    )  # fmt: skip
    reset = statistics.median(resets[1:] or resets)
    title = f"{name}, {num_envs:,} environments"
    tail = f"{name}/{num_envs}"
    more = {"path": fast.env.path}
    lasting = [value + reset / EPISODE for value in taken["vmas"]]
    return [
        compared(f"simulation/{tail}", title, "raw VMAS", "ms/step", taken["ours"], taken["vmas"], **more,
                 env_step=statistics.median(taken["step"]), eager=statistics.median(taken["off"])),
        compared(f"episodes/{tail}", title, "raw VMAS with a reset every 100 steps", "ms/step", taken["whole"],
                 lasting, **more),
    ]  # fmt: skip


def simulation(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """Balance at several numbers of environments, the other scenarios at one."""
    counts = (4, 8) if options.quick else (60, 600, 6000)
    sizes_run = [("balance", count) for count in counts]
    sizes_run += [(name, counts[1]) for name in SCENARIOS if name != "balance" and not options.quick]
    if options.device.startswith("cuda"):
        sizes_run.append(("balance", 30_000))
    for name, count in sizes_run:
        yield from against_vmas(name, count, options, seconds / len(sizes_run))


def against_jax(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """simple_spread, discrete actions, episodes of 25 steps on both sides; the automatic reset is part of a step."""
    num_envs, count = (8, 20) if options.quick else (600, 200)
    env = VmasEnv("mpe/simple_spread", num_envs, max_steps=25, continuous_actions=False)
    stepper = Stepper(env)
    ours = per_step(stepper.into, count, "cpu")
    with sides.jaxmarl(options.peers, "step", "--envs", num_envs) as side:
        taken = alternate(
            {
                "ours": ours,
                "calls": lambda: 1e3 * side.ask(steps=count, scan=False)["step_s"],
                "scan": lambda: 1e3 * side.ask(steps=count, scan=True)["step_s"],
            },
            options.rounds, Clock(seconds),
        )  # fmt: skip
    name = f"simple_spread, {num_envs:,} environments"
    for how, label in (("calls", "called step by step"), ("scan", "scanned")):
        yield compared(f"jax_step/{how}", name, f"JaxMARL's jitted step, {label}", "ms/step", taken["ours"], taken[how],
                       path=env.path)  # fmt: skip


def first_start(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """Seconds of a whole process from its start to the first step of balance: eager, empty cache, kept cache."""

    def begin(fast: str, cache: str) -> float:
        arguments = ("start", "env=vmas/balance", f"++env.fast={fast}")
        with sides.ours(*arguments, environment={"MARL_KERNEL_CACHE": cache}) as side:
            return side.ready["seconds"]

    with tempfile.TemporaryDirectory() as cache_dir:
        begin("auto", cache_dir)  # fills the cache that is kept, and the file system's

        def empty() -> float:
            with tempfile.TemporaryDirectory() as fresh:
                return begin("auto", fresh)

        taken = alternate(
            {"empty": empty, "kept": lambda: begin("auto", cache_dir), "eager": lambda: begin("off", cache_dir)},
            options.rounds, Clock(seconds), warm_up=0,
        )  # fmt: skip
    eager = statistics.median(taken["eager"])
    for how in ("empty", "kept"):
        whole = statistics.median(taken[how])
        yield figure(f"first_start/{how}", f"first start of balance, {how} kernel cache", whole - eager, "s over eager",
                     whole=whole, eager=eager, rounds=len(taken[how]))  # fmt: skip


def coverage(options: argparse.Namespace, seconds: float) -> Iterator[dict]:
    """Scenarios that step by a kernel: each is verified against the eager simulator when it is built."""
    paths = {}
    for scenario in scenario_names()[: 2 if options.quick else None]:
        try:
            env = VmasEnv(scenario, 37, scenario_kwargs={})
            paths[scenario] = env.path if env.path == "kernel" else env.why_eager
        except EnvError as error:
            paths[scenario] = str(error)
    count = sum(path == "kernel" for path in paths.values())
    yield figure("coverage", f"scenarios on the kernel path, of {len(paths)}", count, "scenarios",
                 others={name: path for name, path in paths.items() if path != "kernel"})  # fmt: skip
