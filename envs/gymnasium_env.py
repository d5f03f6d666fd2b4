"""Any gymnasium environment, as a team of one agent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import gymnasium
import torch
from pydantic import Field

from envs.base import EnvError
from envs.host import Copy, HostEnv, Observations

AGENT = "agent"


class _Single(Copy):
    agents = (AGENT,)

    def __init__(self, env: gymnasium.Env) -> None:
        self.env = env
        self.observation_spaces, self.action_spaces = {AGENT: env.observation_space}, {AGENT: env.action_space}

    def reset(self, seed: int) -> Observations:
        return {AGENT: self.env.reset(seed=seed)[0]}

    def step(self, action: dict[str, Any]) -> tuple[Observations, dict[str, float], bool, bool]:
        observation, reward, terminated, truncated, _ = self.env.step(action[AGENT])
        return {AGENT: observation}, {AGENT: float(reward)}, bool(terminated), bool(truncated)

    def close(self) -> None:
        self.env.close()


class GymnasiumEnv(HostEnv):
    """E copies of a gymnasium environment (Towers et al. 2024); the group "agents" holds its one agent.

    id: a registered id ("CartPole-v1"; "my_project.envs:Mine-v0" imports the module first). kwargs: for
    `gymnasium.make`. max_steps: time limit, steps; None keeps the one that the environment was registered with.

    Raises EnvError for unknown ids, wrong keyword arguments, unsuitable spaces, and devices other than the CPU.
    """

    def __init__(
        self,
        id: str,
        num_envs: Annotated[int, Field(ge=1)] = 16,
        max_steps: Annotated[int, Field(ge=1)] | None = None,
        kwargs: dict[str, Any] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        on_the_cpu(device, "gymnasium")
        try:
            made = [gymnasium.make(id, **(kwargs or {})) for _ in range(num_envs)]
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise EnvError(f"env.id={id!r}: {' '.join(str(error).split())[:300]}") from error
        limit = max_steps or made[0].spec.max_episode_steps
        super().__init__([_Single(env) for env in made], f"env.id={id!r}", limit, "split", seed)


class PettingZooEnv(HostEnv):
    """E copies of a PettingZoo environment with the parallel interface (Terry et al. 2021).

    env: dotted path of a function that makes one, e.g. "mpe2.simple_spread_v3.parallel_env". kwargs: its arguments.
    Agents of one name prefix and with the same spaces are a group; "pad" keeps those with other sizes in it.
    The episode ends when no agent is left; it is truncated if no agent's episode was terminated in its last step.

    Raises EnvError for paths that lead nowhere, wrong arguments, unsuitable spaces, and devices other than the CPU.
    """

    def __init__(
        self,
        env: str,
        num_envs: Annotated[int, Field(ge=1)] = 16,
        max_steps: Annotated[int, Field(ge=1)] | None = 100,
        heterogeneous: Literal["split", "pad"] = "split",
        kwargs: dict[str, Any] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        on_the_cpu(device, "PettingZoo")
        make = located(env)
        try:
            copies = [_Parallel(make(**(kwargs or {}))) for _ in range(num_envs)]
        except TypeError as error:
            raise EnvError(f"env.kwargs={kwargs}: {env} refuses them: {error}") from error
        super().__init__(copies, f"env.env={env!r}", max_steps, heterogeneous, seed)


class _Parallel(Copy):
    def __init__(self, env: Any) -> None:
        self.env, self.agents = env, tuple(env.possible_agents)
        self.observation_spaces = {agent: env.observation_space(agent) for agent in self.agents}
        self.action_spaces = {agent: env.action_space(agent) for agent in self.agents}

    def reset(self, seed: int) -> Observations:
        return self.env.reset(seed=seed)[0]

    def step(self, action: dict[str, Any]) -> tuple[Observations, dict[str, float], bool, bool]:
        present = {agent: action[agent] for agent in self.env.agents}
        observations, rewards, terminated, truncated, _ = self.env.step(present)
        over = not self.env.agents
        return observations, rewards, over and any(terminated.values()), over

    def close(self) -> None:
        self.env.close()


def on_the_cpu(device: str | torch.device, whose: str) -> None:
    """Raise EnvError for a device on which environments of `whose` cannot run."""
    if torch.device(device).type != "cpu":
        raise EnvError(f"device={device}: {whose}'s environments run on the CPU; write device=cpu.")


def located(path: str) -> Any:
    """What a dotted path names. Raises EnvError, naming the package to install where one is missing."""
    import importlib

    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        hint = "; `pip install -e '.[pettingzoo]'` brings PettingZoo and mpe2" if error.name in EXTRA else ""
        raise EnvError(f"env.env={path!r}: there is no module {error.name!r} here{hint}.") from error
    except (AttributeError, ValueError) as error:
        raise EnvError(f"env.env={path!r} must be module.function, of a function that makes an environment.") from error


EXTRA = ("pettingzoo", "mpe2")
