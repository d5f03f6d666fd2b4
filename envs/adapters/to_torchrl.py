"""Any environment of this package as a TorchRL environment, so that TorchRL's collectors, losses and tools take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, Unbounded
from torchrl.data.tensor_specs import TensorSpec
from torchrl.envs import EnvBase

from envs.base import Env, EnvError, Transition
from envs.spec import ActionSpec, GroupSpec


class TorchRLEnv(EnvBase):
    """An `envs.base.Env` with batch [E] under TorchRL's keys.

    (group, "observation") [E, A, F], (group, "action") [E, A, D] (discrete: [E, A]; hybrid: below it "continuous"
    [E, A, C] and "discrete" [E, A, K]), (group, "reward") [E, A, 1]; "state" [E, S] where the environment has one;
    "done", "terminated", "truncated" [E, 1] at the root. Masks are (group, "alive") [E, A] and (group, "action_mask")
    [E, A, sum(nvec)]. Where agents end each on its own, the same three flags lie in each group, [E, A, 1]; the root's
    say when the environment restarts.

    The environment restarts what ended within its own step. So a step returns the true next observation, and the
    partial reset that TorchRL asks for afterwards (the mask "_reset") returns what the environment restarted from:
    nothing is reset twice. A mask with environments that have not just ended raises EnvError.
    """

    def __init__(self, env: Env) -> None:
        super().__init__(device=env.device, batch_size=[env.num_envs])
        self.env = env
        self._last: Transition | None = None
        spec, batch = env.spec, env.num_envs
        observation = {
            name: Composite(
                {
                    "observation": _unbounded(batch, g.n_agents, g.observation_size, env.device),
                    **_masks(batch, g, env.device),
                },
                shape=(batch, g.n_agents),
                device=env.device,
            )
            for name, g in spec.groups.items()
        }
        if spec.state_size is not None:
            observation["state"] = _unbounded(batch, spec.state_size, None, env.device)
        self.observation_spec = Composite(observation, shape=(batch,), device=env.device)
        self.action_spec = _per_group(env, lambda g: {"action": action_spec(g.action, batch, g.n_agents, env.device)})
        self.reward_spec = _per_group(env, lambda g: {"reward": _unbounded(batch, g.n_agents, 1, env.device)})
        device = env.device
        ends = {
            name: Composite(_flags(batch, g.n_agents, device=device), shape=(batch, g.n_agents), device=device)
            for name, g in spec.groups.items()
            if g.ends
        }
        self.done_spec = Composite({**_flags(batch, device=device), **ends}, shape=(batch,), device=device)

    def _observed(
        self, observation: dict[str, Tensor], state: Tensor | None, masks: dict[str, dict[str, Tensor]]
    ) -> dict[str, Tensor | TensorDict]:
        names = {"alive": "alive", "action": "action_mask"}
        observed = {
            name: TensorDict(
                {"observation": value, **{names[kind]: mask for kind, mask in masks.get(name, {}).items()}},
                value.shape[:2],
                device=self.device,
            )
            for name, value in observation.items()
        }
        return observed if state is None else {**observed, "state": state}

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDict:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        resets = torch.ones(self.batch_size, dtype=torch.bool, device=self.device) if mask is None else mask.view(-1)
        ended = torch.zeros_like(resets) if self._last is None else self._last.done
        if mask is not None and bool((ended | ~resets).all()):  # what ended has restarted already, in the step
            observation, state = self._last.observation, self._last.state
        elif bool(resets.all()):
            observation, state = self.env.reset()
            self._last = None
        else:
            raise EnvError("TorchRLEnv can reset only environments whose episode has just ended, or all of them.")
        out = self._observed(observation, state, self.env.masks())
        zeros = {key: torch.zeros(*self.batch_size, 1, dtype=torch.bool, device=self.device) for key in FLAGS}
        for name, group in self.env.spec.groups.items():
            for key in FLAGS if group.ends else ():
                out[name][key] = torch.zeros(*self.batch_size, group.n_agents, 1, dtype=torch.bool, device=self.device)
        return TensorDict({**out, **zeros}, self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = {}
        for name, group in self.env.spec.groups.items():
            value = tensordict.get((name, "action"))
            if group.action.kind == "hybrid":
                value = torch.cat([value["continuous"], value["discrete"].float()], -1)
            action[name] = value.unsqueeze(-1) if group.action.kind == "discrete" else value
        moved = self._last = self.env.step(action)
        out = self._observed(moved.next_observation, moved.next_state, self.env.masks())
        for name, reward in moved.reward.items():
            out[name]["reward"] = reward.unsqueeze(-1)
        for name, terminated in moved.agent_terminated.items():
            truncated = moved.agent_truncated[name]
            for key, flag in zip(FLAGS, (terminated | truncated, terminated, truncated), strict=True):
                out[name][key] = flag.unsqueeze(-1)
        return TensorDict(
            {
                **out,
                "done": moved.done.unsqueeze(-1),
                "terminated": moved.terminated.unsqueeze(-1),
                "truncated": moved.truncated.unsqueeze(-1),
            },
            self.batch_size,
            device=self.device,
        )

    def _set_seed(self, seed: int | None) -> None:
        self.env.reset(seed)
        self._last = None


FLAGS = ("done", "terminated", "truncated")


def _flags(*shape: int, device: torch.device) -> dict[str, TensorSpec]:
    return {key: Binary(1, shape=(*shape, 1), dtype=torch.bool, device=device) for key in FLAGS}


def _masks(batch: int, group: GroupSpec, device: torch.device) -> dict[str, TensorSpec]:
    sizes = {"alive": ("alive", ()), "action": ("action_mask", (sum(group.action.nvec),))}
    return {
        sizes[kind][0]: Binary(shape=(batch, group.n_agents, *sizes[kind][1]), dtype=torch.bool, device=device)
        for kind in group.masks
    }


def _unbounded(batch: int, rows: int, columns: int | None, device: torch.device) -> Unbounded:
    return Unbounded(shape=(batch, rows) if columns is None else (batch, rows, columns), device=device)


def _per_group(env: Env, make: Callable[[GroupSpec], dict[str, TensorSpec]]) -> Composite:
    return Composite(
        {
            name: Composite(make(g), shape=(env.num_envs, g.n_agents), device=env.device)
            for name, g in env.spec.groups.items()
        },
        shape=(env.num_envs,),
        device=env.device,
    )


def action_spec(action: ActionSpec, num_envs: int, agents: int, device: torch.device) -> TensorSpec:
    """TorchRL's spec of a group's actions: [E, A, D], [E, A] for discrete ones, both side by side for hybrid ones.

    Where any bound is infinite all numbers are Unbounded: TorchRL draws no actions from half a range.
    """
    if action.kind == "hybrid":
        reals = replace(action, kind="continuous", nvec=(), mask=None)
        choices = replace(action, kind="multi_discrete", low=None, high=None, mask=None)
        parts = {
            "continuous": action_spec(reals, num_envs, agents, device),
            "discrete": action_spec(choices, num_envs, agents, device),
        }
        return Composite(parts, shape=(num_envs, agents), device=device)
    if action.kind == "continuous":
        shape = (num_envs, agents, action.size)
        if not action.bounded:
            return Unbounded(shape, device=device)
        return Bounded(action.low.expand(shape).clone(), action.high.expand(shape).clone(), shape, device=device)
    if action.kind == "discrete":
        return Categorical(action.nvec[0], shape=(num_envs, agents), device=device, dtype=torch.int64)
    return MultiCategorical(action.nvec, shape=(num_envs, agents, action.size), device=device, dtype=torch.int64)
