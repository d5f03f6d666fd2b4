"""Building VMAS simulators: scenarios by name or dotted path, their keywords checked, no shared random state."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import re
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.distributions import Distribution
from vmas.simulator.environment import Environment
from vmas.simulator.environment.environment import spaces  # gym's, in whose terms VMAS tells its actions
from vmas.simulator.scenario import BaseScenario

from envs.base import EnvError
from envs.rng import Stream
from envs.vmas.patches import (
    batch_resets,
    decide_collisions_per_environment,
    decide_scenarios_per_environment,
    keep_devices_apart,
    keep_words_apart,
)
from marl.core import imports

SMALL = 10_000  # environments of a pool up to which several threads wake for less than they do


class Simulator(Environment):
    """VMAS's Environment without its decorator `local_seed`.

    The decorator swaps in a random state that all environments of the process share, so that evaluating disturbs
    training. Here the caller swaps in an environment's own stream (`envs.rng.Stream`) instead.
    """

    __init__ = inspect.unwrap(Environment.__init__)
    reset = inspect.unwrap(Environment.reset)
    reset_at = inspect.unwrap(Environment.reset_at)
    get_from_scenario = inspect.unwrap(Environment.get_from_scenario)
    seed = inspect.unwrap(Environment.seed)
    step = inspect.unwrap(Environment.step)
    done = inspect.unwrap(Environment.done)
    get_random_action = inspect.unwrap(Environment.get_random_action)
    render = inspect.unwrap(Environment.render)
    words = "continuous"  # how agents talk where they move by continuous actions: dim_c numbers in [0, 1]

    def _done(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Terminated and truncated, bool [E] each; of agents that end each on its own (`AgentMasks`): when all have."""
        terminated, truncated = super()._done()
        if terminated.dim() == 2 and terminated.shape[1] == self.n_agents and terminated.dtype == torch.bool:
            return terminated.all(-1), truncated if truncated.dim() == 1 else truncated.any(-1)
        return terminated, truncated


class WordChoice(Simulator):
    """With continuous actions an agent that talks chooses one of its `dim_c` words, the last number of its action."""

    words = "discrete"

    def get_agent_action_size(self, agent: Any) -> int:
        """Numbers of an agent's action: what moves it, and the word."""
        talks = not agent.silent and self.world.dim_c > 0
        return agent.action_size + int(talks) if self.continuous_actions else super().get_agent_action_size(agent)

    def get_random_action(self, agent: Any) -> torch.Tensor:
        """A random action [E, numbers]."""
        action = super().get_random_action(agent)
        if not self.continuous_actions or agent.silent or not self.world.dim_c:
            return action
        word = torch.randint(self.world.dim_c, (self.num_envs, 1), device=agent.device)
        return torch.cat([action[:, : agent.action_size], word], -1)

    def get_agent_action_space(self, agent: Any) -> spaces.Space:
        """A Box; with a word, a Tuple of the Box and what can be said."""
        if not self.continuous_actions or agent.silent or not self.world.dim_c:
            return super().get_agent_action_space(agent)
        reach = agent.action.u_range_tensor.cpu().numpy()
        return spaces.Tuple([spaces.Box(-reach, reach, dtype=np.float32), spaces.Discrete(self.world.dim_c)])


def scenario_names() -> list[str]:
    """All scenarios that come with VMAS: "balance", "mpe/simple_spread", "debug/goal", …"""
    return list(_installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    prefix = "vmas.scenarios."  # a module that vmas/__init__ hides behind a list of the same name
    modules = pkgutil.walk_packages(importlib.import_module("vmas.scenarios").__path__, prefix)
    return tuple(sorted(m.name.removeprefix(prefix).replace(".", "/") for m in modules if not m.ispkg))


def find_scenario(name: str) -> type[BaseScenario]:
    """The scenario class behind a VMAS name ("balance", "mpe/simple_tag" or "simple_tag") or a dotted path.

    A dotted path leads to a class ("my.module.MyScenario") or to a module that has a class `Scenario`.
    Raises EnvError, with the closest names, if there is none.
    """
    names = scenario_names()
    if name in names or "." not in name:
        full = name if name in names else next((n for n in names if n.rpartition("/")[2] == name), None)
        if full is None:
            short = [n.rpartition("/")[2] for n in names]
            close = difflib.get_close_matches(name.rpartition("/")[2], short, n=3)
            close = [names[short.index(c)] for c in close]
            hint = f"did you mean {' or '.join(close)}?" if close else f"VMAS has {', '.join(names)}."
            raise EnvError(f"env.scenario={name!r} is neither a VMAS scenario nor a dotted path: {hint}")
        return importlib.import_module("vmas.scenarios." + full.replace("/", ".")).Scenario
    target = imports.locate(name, "env.scenario")
    if isinstance(target, types.ModuleType):
        target = getattr(target, "Scenario", None)
    if not (isinstance(target, type) and issubclass(target, BaseScenario)):
        raise EnvError(
            f"env.scenario={name!r} must be a subclass of vmas.simulator.scenario.BaseScenario, "
            "or a module with such a class named Scenario."
        )
    return target


def keywords_of(scenario: type[BaseScenario]) -> list[str]:
    """Keyword names that a scenario's source takes: `kwargs.pop("n_agents", …)`, `kwargs.get`, or parameters."""
    names = [
        p.name
        for p in inspect.signature(scenario.make_world).parameters.values()
        if p.name not in ("self", "batch_dim", "device") and p.kind is not p.VAR_KEYWORD
    ]
    for cls in scenario.__mro__:
        if issubclass(cls, BaseScenario) and cls is not BaseScenario:
            names += _taken_in_source(cls)
    return list(dict.fromkeys(names))


@functools.lru_cache(maxsize=256)
def _taken_in_source(cls: type[BaseScenario]) -> tuple[str, ...]:
    """Kept, since Python looks for a class's source by reading all of its file."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return ()  # a class of a REPL or a notebook, whose source is nowhere: VMAS itself refuses unknown ones
    return tuple(re.findall(r"kwargs\.(?:pop|get)\(\s*[\"'](\w+)[\"']", source))


def uses_host_random(scenario: type[BaseScenario]) -> bool:
    """Whether a scenario may draw from numpy's or python's generators; those that are not VMAS's are assumed to."""
    if any(not cls.__module__.startswith("vmas.") for cls in scenario.__mro__ if issubclass(cls, BaseScenario)):
        return True
    source = inspect.getsource(sys.modules[scenario.__module__])
    return re.search(r"\bnp\.random|\bimport random\b|\bfrom (?:numpy|random)\b", source) is not None


def build_simulator(
    name: str,
    num_envs: int,
    stream: Stream,
    *,
    continuous_actions: bool,
    multi_discrete: bool,
    max_steps: int | None,
    scenario_kwargs: dict[str, Any],
    words: str = "continuous",
) -> Simulator:
    """A VMAS environment with `num_envs` copies, built inside `stream`. Raises EnvError for unknown names or values.

    words: "discrete" where agents that move by continuous actions choose what they say.
    """
    scenario = find_scenario(name)
    known = keywords_of(scenario)
    if scenario.__module__.startswith("vmas."):
        _refuse_unknown(name, [key for key in scenario_kwargs if key not in known], known)
    with stream, warnings.catch_warnings():
        warnings.filterwarnings("error", message="Scenario kwargs")
        warnings.filterwarnings("ignore", message=".*Gym|.*gym")
        try:
            made = scenario()
            if reads_progress(made):
                made.progress = torch.ones(num_envs, device=stream.device)
            simulator = (WordChoice if words == "discrete" else Simulator)(
                made,
                num_envs=num_envs,
                device=stream.device,
                max_steps=max_steps,
                continuous_actions=continuous_actions,
                multidiscrete_actions=multi_discrete,
                terminated_truncated=True,
                **scenario_kwargs,
            )
        except UserWarning as warning:
            left = re.findall(r"'(\w+)':", str(warning).partition("passed but")[0])
            _refuse_unknown(name, [key for key in left if key in scenario_kwargs] or list(scenario_kwargs), known)
            raise
        except Exception as error:
            arguments = f" with scenario_kwargs={scenario_kwargs}" if scenario_kwargs else ""
            raise EnvError(f"env.scenario={name!r} can't be built{arguments}: {imports.fault(error)}.") from error
    if words == "discrete" and not any(simulator.world.dim_c and not agent.silent for agent in simulator.agents):
        raise EnvError(f"env.words=discrete: no agent of env.scenario={name!r} talks; write env.words=continuous.")
    keep_words_apart(simulator, words == "discrete")
    decide_collisions_per_environment(simulator.world)
    decide_scenarios_per_environment(simulator.scenario)
    batch_resets(simulator.scenario)
    keep_devices_apart(simulator.scenario)
    return simulator


def _refuse_unknown(name: str, unknown: list[str], known: list[str]) -> None:
    if not unknown:
        return
    close = difflib.get_close_matches(unknown[0], known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"it takes {', '.join(known) or 'none'}."
    raise EnvError(f"env.scenario_kwargs.{unknown[0]} is not a keyword of scenario {name!r}: {hint}")


def reads_progress(scenario: BaseScenario) -> bool:
    """Whether a scenario's class says `reads_progress = True`: then `self.progress`, float32 [E], is the run's."""
    return bool(getattr(scenario, "reads_progress", False))


def global_state(simulator: Simulator) -> torch.Tensor:
    """float32 [E, S]: position, velocity, rotation, angular velocity (6 numbers) of every entity, landmarks first."""
    parts = [
        part
        for entity in simulator.world.entities
        for part in (entity.state.pos, entity.state.vel, entity.state.rot, entity.state.ang_vel)
    ]
    return torch.cat(parts, dim=-1)


@contextmanager
def light_resets(num_envs: int) -> Iterator[None]:
    """For resets after the first: small tensors on one thread, and distributions that do not check every number.

    Scenarios make many operations on a few numbers per environment. VMAS's own reset of sampling, 40,000 of them
    (`batch_resets` makes fewer), took 1.7 s by two threads, 1.0 s by one, and 0.9 s without checks.
    """
    threads, checks = torch.get_num_threads(), Distribution._validate_args
    torch.set_num_threads(1 if num_envs <= SMALL else threads)
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        Distribution.set_default_validate_args(checks)
