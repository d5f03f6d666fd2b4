"""Any gymnasium environment, as a team of one agent."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Protocol

import gymnasium
import torch
from pydantic import Field

from envs.adapters.copies.env_copies import ByAgent, Copy, Played
from envs.adapters.copies.turn_based import Turns
from envs.adapters.object_env import HostEnv
from envs.base import EnvError
from marl.core import imports
from marl.core.errors import UserError
from marl.core.kinds import maker

AGENT = "agent"


class _Single(Copy):
    agents = (AGENT,)

    def __init__(self, id: str, kwargs: dict[str, Any]) -> None:
        registered(id)
        try:
            self.env = gymnasium.make(id, **kwargs)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise EnvError(f"env.id={id!r}: {' '.join(str(error).split())[:300]}") from error
        self.observation_spaces = {AGENT: self.env.observation_space}
        self.action_spaces = {AGENT: self.env.action_space}
        self.max_steps = self.env.spec.max_episode_steps

    def reset(self, seed: int) -> tuple[ByAgent, ByAgent]:
        observation, info = self.env.reset(seed=seed)
        return {AGENT: observation}, {AGENT: info}

    def step(self, action: ByAgent) -> Played:
        observation, reward, terminated, truncated, info = self.env.step(action[AGENT])
        return {AGENT: observation}, {AGENT: info}, {AGENT: float(reward)}, {AGENT: terminated}, {AGENT: truncated}

    def close(self) -> None:
        self.env.close()


class GymnasiumEnv(HostEnv):
    """E copies of a gymnasium environment (Towers et al. 2024); the group "agents" holds its one agent.

    id: a registered id ("CartPole-v1"; "my_project.envs:Mine-v0" imports the module first). kwargs: for
    `gymnasium.make`. max_steps: time limit, steps; None keeps the one that the environment was registered with.
    workers: processes (at most) that step their share of the copies each; 0: in turn, in this process.
    observe_time: the share of the episode that remains as the last feature (`envs.remaining_time`).

    Raises EnvError for unknown ids, wrong keyword arguments, unsuitable spaces, devices other than the CPU, and for
    observe_time without a time limit.
    """

    def __init__(
        self,
        id: str,
        num_envs: Annotated[int, Field(ge=1)] = 16,
        max_steps: Annotated[int, Field(ge=1)] | None = None,
        kwargs: dict[str, Any] | None = None,
        workers: Annotated[int, Field(ge=0)] = 0,
        observe_time: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        on_the_cpu(device, "gymnasium")
        make = partial(_Single, id, dict(kwargs or {}))
        super().__init__(make, num_envs, f"env.id={id!r}", max_steps, "split", seed, workers, observe_time=observe_time)


class ParallelEnv(Protocol):
    """What PettingZoo's parallel interface is known by; its attribute `possible_agents` names the agents."""

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[ByAgent, ByAgent]: ...

    def step(self, actions: ByAgent) -> tuple[ByAgent, ByAgent, ByAgent, ByAgent, ByAgent]: ...

    def observation_space(self, agent: str) -> gymnasium.Space: ...

    def action_space(self, agent: str) -> gymnasium.Space: ...


class PettingZooEnv(HostEnv):
    """E copies of a PettingZoo environment (Terry et al. 2021), whose agents act all at once or in turn.

    env: dotted path of its class, or of a function that makes one and is called `parallel_env` or `env` or says what it
    returns (`-> ParallelEnv`), e.g. "mpe2.simple_spread_v3.parallel_env". kwargs: its arguments. What has the parallel
    interface steps all agents at once; what has the AEC interface one turn at a time (`copies.turn_based`).
    groups: {group: agent names or name prefixes}; None: by prefix and space, as below.
    workers: processes (at most) that step their share of the copies each; 0: in turn, in this process.
    observe_time: the share of the episode that remains as the last feature (`envs.remaining_time`).
    Agents of one name prefix and with the same spaces are a group; "pad" keeps those with other sizes in it.
    An agent's own episode ends where its `terminations` or `truncations` say so, or where `agents` no longer names it
    (truncated). It is dead from then on (masked "alive") until the environment restarts, whatever is still told of it;
    or until it comes back: `agents` has left it out and then names it again. The environment's episode ends when no
    agent is left; it is truncated if no agent's episode was terminated in its last step. At the time limit all that are
    left are truncated.

    Raises EnvError for paths that lead nowhere, wrong arguments, unsuitable spaces, and devices other than the CPU.
    """

    def __init__(
        self,
        env: str,
        num_envs: Annotated[int, Field(ge=1)] = 16,
        max_steps: Annotated[int, Field(ge=1)] | None = 100,
        heterogeneous: Literal["split", "pad"] = "split",
        kwargs: dict[str, Any] | None = None,
        workers: Annotated[int, Field(ge=0)] = 0,
        groups: dict[str, list[str]] | None = None,
        observe_time: bool = False,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        on_the_cpu(device, "PettingZoo")
        make = partial(_pettingzoo, env, dict(kwargs or {}))
        super().__init__(
            make, num_envs, f"env.env={env!r}", max_steps, heterogeneous, seed, workers, groups, observe_time
        )


def _pettingzoo(path: str, kwargs: dict[str, Any]) -> Copy:
    """A copy of the interface that the environment at `path` has."""
    make = located(path, ParallelEnv, "env" if path.endswith(".env") else "parallel_env")
    try:
        env = make(**kwargs)
    except TypeError as error:
        raise EnvError(f"env.kwargs={kwargs}: {path} refuses them: {error}") from error
    if not hasattr(env, "possible_agents"):
        raise EnvError(
            f"env.env={path!r} makes {env!r}; what has PettingZoo's parallel or AEC interface is allowed, "
            f"often {path.rpartition('.')[0]}.parallel_env or .env."
        )
    return Turns(env) if hasattr(env, "agent_iter") else _Parallel(env)


class _Parallel(Copy):
    ends = True

    def __init__(self, env: Any) -> None:
        self.env, self.agents = env, tuple(env.possible_agents)
        self.observation_spaces = {agent: env.observation_space(agent) for agent in self.agents}
        self.action_spaces = {agent: env.action_space(agent) for agent in self.agents}

    def reset(self, seed: int) -> tuple[ByAgent, ByAgent]:
        observations, infos = self.env.reset(seed=seed)
        self.over: set[str] = set()  # who has ended, while `agents` goes on naming it
        self.there = [agent for agent in self.env.agents if agent in observations]
        return {agent: observations[agent] for agent in self.there}, infos

    def step(self, action: ByAgent) -> Played:
        before = self.there
        # The environment is given actions for all that it names: some name the dead, too, and ask for theirs.
        moved = self.env.step({agent: action[agent] for agent in self.env.agents})
        observations, rewards, terminations, truncations, infos = moved
        named = set(self.env.agents)
        flagged = {agent for flags in (terminations, truncations) for agent, flag in flags.items() if flag}
        self.over = (self.over | flagged) & named
        self.there = [a for a in self.agents if a in named and a not in self.over and a in observations]
        terminated = {agent: bool(terminations.get(agent, False)) for agent in before}
        truncated = {agent: not terminated[agent] and agent not in self.there for agent in before}
        observed = {a: observations[a] for a in dict.fromkeys([*before, *self.there]) if a in observations}
        return observed, infos, rewards, terminated, truncated

    def close(self) -> None:
        self.env.close()


def on_the_cpu(device: str | torch.device, whose: str) -> None:
    """Raise EnvError for a device on which environments of `whose` cannot run."""
    if torch.device(device).type != "cpu":
        raise EnvError(f"device={device}: {whose}'s environments run on the CPU; write device=cpu.")


def located(path: str, kind: type, conventional: str = "") -> Any:
    """What makes an environment, by its dotted path (`marl.core.kinds.maker`).

    Raises EnvError, naming the package to install where one is missing.
    """
    try:
        return maker(path, "env.env", kind, conventional)
    except UserError as error:
        lacks = path.startswith(EXTRA) and any(find_spec(name) is None for name in EXTRA)
        hint = "; `pip install -e '.[pettingzoo]'` brings PettingZoo and mpe2" if lacks else ""
        raise EnvError(f"{error}{hint}") from error


def registered(id: str) -> None:
    """Import the module that registers an environment, of an id "my_project.envs:Mine-v0". Raises UserError."""
    name, colon, _ = id.partition(":")
    if colon:
        imports.module(name, "env.id", id)


EXTRA = ("pettingzoo", "mpe2")
