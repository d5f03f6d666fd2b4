"""Any environment of this package as other people's code expects one: gymnasium (vector and single), PettingZoo.

TorchRL's form is `envs.adapters.to_torchrl`. Tensors become NumPy arrays on the host.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from envs.base import Env, EnvError, Transition
from envs.spec import GroupSpec

METADATA = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}


def observation_space(group: GroupSpec) -> spaces.Box:
    """What a group sees: float32 [A, F]."""
    return spaces.Box(-np.inf, np.inf, (group.n_agents, group.observation_size), np.float32)


def action_space(group: GroupSpec) -> spaces.Space:
    """What a group does: float32 [A, C] between its bounds, int64 [A, K] choices, or a Dict of both."""
    parts: dict[str, spaces.Space] = {}
    if group.action.low is not None:
        low, high = (bound.cpu().numpy() for bound in (group.action.low, group.action.high))
        parts["continuous"] = spaces.Box(low, high, dtype=np.float32)
    if group.action.nvec:
        nvec = np.tile(np.array(group.action.nvec, dtype=np.int64), (group.n_agents, 1))
        parts["discrete"] = spaces.MultiDiscrete(nvec)
    return spaces.Dict(parts) if len(parts) > 1 else next(iter(parts.values()))


def seen(observation: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """{group: float32 [E, A, F]} as arrays of their own."""
    return {name: value.cpu().numpy().copy() for name, value in observation.items()}


def team_reward(env: Env, moved: Transition) -> np.ndarray:
    """float64 [E]: the mean over all agents of the environment."""
    return torch.cat([moved.reward[name] for name in env.spec.groups], 1).mean(1).double().cpu().numpy()


def to_tensors(env: Env, action: dict[str, Any]) -> dict[str, Tensor]:
    """{group: [E, A, D]} arrays, or Dicts of them, as tensors on the environment's device."""
    return {name: torch.as_tensor(joined(value), device=env.device) for name, value in action.items()}


def joined(action: Any) -> np.ndarray:
    """An action as one array [..., D]: {"continuous": [..., C], "discrete": [..., K]} become float32 [..., C + K]."""
    if not isinstance(action, dict):
        return np.asarray(action)
    return np.concatenate([action["continuous"], action["discrete"]], -1, dtype=np.float32)


class GymnasiumVector(VectorEnv):
    """An Env as a gymnasium vector environment that resets within the step (AutoresetMode.SAME_STEP).

    Observations and actions are dicts by group, [E, A, F] and [E, A, D]; a hybrid action is itself a dict of its parts
    "continuous" [E, A, C] and "discrete" [E, A, K]. The reward is the mean over the agents [E];
    infos hold each group's own, "reward/GROUP" [E, A], and where episodes ended "final_obs", masked by "_final_obs".
    """

    metadata = METADATA

    def __init__(self, env: Env) -> None:
        self.env, self.num_envs = env, env.num_envs
        groups = env.spec.groups.items()
        self.single_observation_space = spaces.Dict({name: observation_space(g) for name, g in groups})
        self.single_action_space = spaces.Dict({name: action_space(g) for name, g in groups})
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Restart all environments; one seed is everyone's stream. Raises EnvError for a list of seeds or options."""
        if options or not (seed is None or isinstance(seed, int)):
            raise EnvError(f"reset takes one int as seed and no options, not seed={seed!r}, options={options!r}.")
        return seen(self.env.reset(seed)[0]), {}

    def step(self, actions: dict[str, Any]) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One step of all; what ended has started again in the returned observation."""
        moved = self.env.step(to_tensors(self.env, actions))
        infos: dict[str, Any] = {f"reward/{name}": value.cpu().numpy() for name, value in moved.reward.items()}
        done = moved.done.cpu().numpy()
        if done.any():
            infos |= {"final_obs": seen(moved.next_observation), "_final_obs": done}
        return (seen(moved.observation), team_reward(self.env, moved), moved.terminated.cpu().numpy(),
                moved.truncated.cpu().numpy(), infos)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environment."""
        self.env.close()


class _Alone:
    """An Env of one copy that others reset by hand: what its step has restarted already is handed over then."""

    def __init__(self, env: Env) -> None:
        if env.num_envs != 1:
            raise EnvError(f"env.num_envs={env.num_envs}: a single environment is handed out; write num_envs=1.")
        self.env = env
        self.fresh: dict[str, Tensor] | None = None

    def reset(self, seed: int | None) -> dict[str, Tensor]:
        waiting, self.fresh = self.fresh, None
        return self.env.reset(seed)[0] if waiting is None or seed is not None else waiting

    def step(self, action: dict[str, Tensor]) -> Transition:
        moved = self.env.step(action)
        self.fresh = moved.observation if bool(moved.done) else None
        return moved


class GymnasiumSingle(gymnasium.Env):
    """An Env of one copy as a gymnasium environment: dicts by group, [A, F] and [A, D]; the reward is the agents' mean.

    Hybrid actions as in `GymnasiumVector`.
    Raises EnvError for more than one copy.
    """

    metadata = {"render_modes": []}

    def __init__(self, env: Env) -> None:
        self.alone = _Alone(env)
        self.observation_space = spaces.Dict({name: observation_space(g) for name, g in env.spec.groups.items()})
        self.action_space = spaces.Dict({name: action_space(g) for name, g in env.spec.groups.items()})

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """A new episode; a seed restarts the environment's random stream."""
        super().reset(seed=seed)
        return {name: value[0] for name, value in seen(self.alone.reset(seed)).items()}, {}

    def step(self, action: dict[str, Any]) -> tuple[dict, float, bool, bool, dict]:
        """One step; infos hold each group's rewards, "reward/GROUP" [A]."""
        rows = {name: joined(value)[None] for name, value in action.items()}
        moved = self.alone.step(to_tensors(self.alone.env, rows))
        infos = {f"reward/{name}": value[0].cpu().numpy() for name, value in moved.reward.items()}
        return ({name: value[0] for name, value in seen(moved.next_observation).items()},
                float(team_reward(self.alone.env, moved)[0]), bool(moved.terminated), bool(moved.truncated), infos)

    def close(self) -> None:
        """Close the environment."""
        self.alone.env.close()


def pettingzoo_parallel(env: Env) -> Any:
    """An Env of one copy as a PettingZoo environment with the parallel interface; agents keep their names.

    Raises EnvError for more than one copy, or where PettingZoo is not installed.
    """
    try:
        from pettingzoo import ParallelEnv
    except ModuleNotFoundError as error:
        raise EnvError("PettingZoo is not installed: `pip install -e '.[pettingzoo]'` brings it.") from error

    class Parallel(ParallelEnv):
        metadata = {"name": "marl_engine", "render_modes": []}
        render_mode = None

        def __init__(self) -> None:
            self.alone = _Alone(env)
            self.where = {a: (name, row) for name, g in env.spec.groups.items() for row, a in enumerate(g.agents)}
            self.possible_agents, self.agents = list(self.where), []
            self.observation_spaces, self.action_spaces = {}, {}
            for agent, (name, row) in self.where.items():
                group = env.spec.groups[name]
                self.observation_spaces[agent] = spaces.Box(-np.inf, np.inf, (group.observation_size,), np.float32)
                self.action_spaces[agent] = agent_actions(group, row)

        def observation_space(self, agent: str) -> spaces.Space:
            return self.observation_spaces[agent]

        def action_space(self, agent: str) -> spaces.Space:
            return self.action_spaces[agent]

        def _each(self, values: dict[str, Tensor]) -> dict[str, np.ndarray]:
            return {agent: values[name][0, row].cpu().numpy().copy() for agent, (name, row) in self.where.items()}

        def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
            self.agents = list(self.possible_agents)
            return self._each(self.alone.reset(seed)), {agent: {} for agent in self.agents}

        def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
            rows = {name: [np.atleast_1d(joined(actions[a])) for a in g.agents] for name, g in env.spec.groups.items()}
            moved = self.alone.step(to_tensors(env, {name: np.stack(row)[None] for name, row in rows.items()}))
            rewards = {agent: float(value) for agent, value in self._each(moved.reward).items()}
            ended, cut = bool(moved.terminated), bool(moved.truncated)
            here, self.agents = self.agents, [] if ended or cut else self.agents
            return (self._each(moved.next_observation), rewards, dict.fromkeys(here, ended), dict.fromkeys(here, cut),
                    {agent: {} for agent in here})

        def render(self) -> None:
            return None

        def close(self) -> None:
            env.close()

    return Parallel()


def agent_actions(group: GroupSpec, row: int) -> spaces.Space:
    """What one agent of a group does: float32 [D], a choice, several, or a Dict of float32 [C] and choices."""
    action = group.action
    if action.low is not None:
        box = spaces.Box(action.low[row].cpu().numpy(), action.high[row].cpu().numpy(), dtype=np.float32)
        choices = spaces.MultiDiscrete(list(action.nvec)) if action.nvec else None
        return box if choices is None else spaces.Dict({"continuous": box, "discrete": choices})
    return spaces.Discrete(action.nvec[0]) if action.kind == "discrete" else spaces.MultiDiscrete(list(action.nvec))
