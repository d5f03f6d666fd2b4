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


def masks_of(env: Env) -> dict[str, np.ndarray]:
    """{"alive/GROUP": bool [E, A], "action_mask/GROUP": bool [E, A, sum(nvec)]} of the observations handed out last."""
    names = {"alive": "alive", "action": "action_mask"}
    return {
        f"{names[kind]}/{name}": mask.cpu().numpy().copy()
        for name, kinds in env.masks().items()
        for kind, mask in kinds.items()
    }


def ends_of(moved: Transition) -> dict[str, np.ndarray]:
    """{"terminated/GROUP", "truncated/GROUP": bool [E, A]} where agents end each on its own."""
    kinds = {"terminated": moved.agent_terminated, "truncated": moved.agent_truncated}
    return {f"{kind}/{name}": flag.cpu().numpy() for kind, flags in kinds.items() for name, flag in flags.items()}


class GymnasiumVector(VectorEnv):
    """An Env as a gymnasium vector environment that resets within the step (AutoresetMode.SAME_STEP).

    Observations and actions are dicts by group, [E, A, F] and [E, A, D]; a hybrid action is itself a dict of its parts
    "continuous" [E, A, C] and "discrete" [E, A, K]. The reward is the mean over the agents [E];
    infos hold each group's own, "reward/GROUP" [E, A], and where episodes ended "final_obs", masked by "_final_obs".
    Where the Env has masks, infos hold "alive/GROUP" [E, A] and "action_mask/GROUP" [E, A, sum(nvec)] of the returned
    observation, at resets too; where agents end each on its own also "terminated/GROUP" and "truncated/GROUP" [E, A] of
    the step and, at every step, "led_to/GROUP" [E, A, F], which holds each agent's true final observation.
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
        return seen(self.env.reset(seed)[0]), masks_of(self.env)

    def step(self, actions: dict[str, Any]) -> tuple[dict, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One step of all; what ended has started again in the returned observation."""
        moved = self.env.step(to_tensors(self.env, actions))
        infos: dict[str, Any] = {f"reward/{name}": value.cpu().numpy() for name, value in moved.reward.items()}
        infos |= masks_of(self.env) | ends_of(moved)
        infos |= {f"led_to/{name}": moved.next_observation[name].cpu().numpy() for name in moved.agent_terminated}
        done = moved.done.cpu().numpy()
        if done.any():
            infos |= {"final_obs": seen(moved.next_observation), "_final_obs": done}
        return (
            seen(moved.observation),
            team_reward(self.env, moved),
            moved.terminated.cpu().numpy(),
            moved.truncated.cpu().numpy(),
            infos,
        )

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
        first = {name: value[0] for name, value in seen(self.alone.reset(seed)).items()}
        return first, {key: mask[0] for key, mask in masks_of(self.alone.env).items()}

    def step(self, action: dict[str, Any]) -> tuple[dict, float, bool, bool, dict]:
        """One step; infos hold each group's rewards, "reward/GROUP" [A], masks and ends as `GymnasiumVector`'s do.

        At the last step of an episode the masks are those of the next one's beginning.
        """
        rows = {name: joined(value)[None] for name, value in action.items()}
        moved = self.alone.step(to_tensors(self.alone.env, rows))
        infos = {f"reward/{name}": value[0].cpu().numpy() for name, value in moved.reward.items()}
        infos |= {key: value[0] for key, value in {**masks_of(self.alone.env), **ends_of(moved)}.items()}
        return (
            {name: value[0] for name, value in seen(moved.next_observation).items()},
            float(team_reward(self.alone.env, moved)[0]),
            bool(moved.terminated),
            bool(moved.truncated),
            infos,
        )

    def close(self) -> None:
        """Close the environment."""
        self.alone.env.close()


def pettingzoo_parallel(env: Env) -> Any:
    """An Env of one copy as a PettingZoo environment with the parallel interface; agents keep their names.

    Where agents end each on its own, an agent that has ended leaves `agents` with its own flag, and is named again when
    it comes back. Masks of actions are in the infos ("action_mask").

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
            observed = self._each(self.alone.reset(seed))
            self.agents = self._there()
            return {agent: observed[agent] for agent in self.agents}, self._infos()

        def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
            rows = {
                name: [np.atleast_1d(joined(actions[a]) if a in actions else idle(g)) for a in g.agents]
                for name, g in env.spec.groups.items()
            }
            moved = self.alone.step(to_tensors(env, {name: np.stack(row)[None] for name, row in rows.items()}))
            ended, cut = (
                self._flags(moved.terminated, moved.agent_terminated),
                self._flags(moved.truncated, moved.agent_truncated),
            )
            before, self.agents = self.agents, [] if bool(moved.done) else self._there()
            told = list(dict.fromkeys([*before, *self.agents]))  # who has just come back tells what it sees, too
            observed, gained = self._each(moved.next_observation), self._each(moved.reward)
            infos = self._infos()
            return (
                {agent: observed[agent] for agent in told},
                {agent: float(gained[agent]) for agent in told},
                {agent: ended[agent] for agent in told},
                {agent: cut[agent] for agent in told},
                {agent: infos.get(agent, {}) for agent in told},
            )

        def _there(self) -> list[str]:
            """Who is alive, of groups whose agents end each on its own; of others all."""
            masks = env.masks()
            lives = {name: masks[name]["alive"][0].tolist() for name, g in env.spec.groups.items() if g.ends}
            return [a for a, (name, row) in self.where.items() if name not in lives or lives[name][row]]

        def _flags(self, whole: Tensor, agents: dict[str, Tensor]) -> dict[str, bool]:
            return {a: bool(agents[name][0, row] if name in agents else whole) for a, (name, row) in self.where.items()}

        def _infos(self) -> dict[str, dict[str, np.ndarray]]:
            masks = env.masks()
            return {
                a: {"action_mask": masks[name]["action"][0, row].cpu().numpy().astype(np.int8)}
                if "action" in env.spec.groups[name].masks
                else {}
                for a, (name, row) in self.where.items()
                if a in self.agents
            }

        def render(self) -> None:
            return None

        def close(self) -> None:
            env.close()

    return Parallel()


def idle(group: GroupSpec) -> np.ndarray:
    """An action for an agent that is not there, [D]; it is ignored."""
    return np.zeros(group.action.size, dtype=np.int64 if group.action.low is None else np.float32)


def agent_actions(group: GroupSpec, row: int) -> spaces.Space:
    """What one agent of a group does: float32 [D], a choice, several, or a Dict of float32 [C] and choices."""
    action = group.action
    if action.low is not None:
        box = spaces.Box(action.low[row].cpu().numpy(), action.high[row].cpu().numpy(), dtype=np.float32)
        choices = spaces.MultiDiscrete(list(action.nvec)) if action.nvec else None
        return box if choices is None else spaces.Dict({"continuous": box, "discrete": choices})
    return spaces.Discrete(action.nvec[0]) if action.kind == "discrete" else spaces.MultiDiscrete(list(action.nvec))
