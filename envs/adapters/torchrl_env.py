"""Any TorchRL environment (`EnvBase`) behind the contract, single or vectorised; `to_torchrl` is the inverse.

Shapes: E environments, A agents of a group, F features, D action dimensions, S global state features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data.tensor_specs import TensorSpec
from torchrl.envs import EnvBase, ParallelEnv, SerialEnv
from torchrl.envs.utils import step_mdp

from envs.adapters.gymnasium_env import located
from envs.adapters.replayed_env import ReplayedEnv
from envs.adapters.torchrl_actions import action_of, encoded
from envs.adapters.torchrl_ends import AgentEnds, Key, agent_flags, whole
from envs.base import EnvError, Transition
from envs.observation_parts import joined, part_of
from envs.rng import Stream
from envs.spec import EnvSpec, GroupSpec, ObservationPart


@dataclass
class _Group:
    """Where a group's tensors lie in TorchRL's TensorDicts."""

    spec: GroupSpec
    action: Key
    action_spec: TensorSpec
    observations: list[Key]
    reward: Key
    mask: Key | None
    flags: dict[str, Key]  # "done", "terminated", "truncated" of each of its agents, where they have such
    infos: dict[str, Key]
    order: Tensor | None  # in which an observation's numbers are read; None: as they come


class FromTorchRL(ReplayedEnv):
    """E copies of a TorchRL environment (Bou et al. 2023), or one that is vectorised itself.

    Each action key is a group: ("adversary", "action") that of the agents `group_map["adversary"]`, a plain "action"
    the group "agents" of one agent. A group sees its key "observation", or else all that lies beside its action, joined
    in sorted order; "action_mask" masks its actions. The true final observation is TorchRL's ("next", …).
    Where a group has flags of its own, (group, "done") [E, A, 1], its agents' episodes end each on its own. An agent is
    dead from there until its environment restarts: where the flag at the root is up, else where all agents are over.

    env: dotted path of a class, e.g. "torchrl.envs.GymEnv", or of a function that says it makes one, `-> EnvBase`.
    kwargs: its arguments.
    vectorised: name of the argument by which it makes several at once ("num_envs"); None: it makes single ones.
    workers: processes that share single ones between them (at most; a divisor of num_envs); 0: this process.
    max_steps: time limit, steps. state: key of a global state at the root; None: there is none.
    restart_every: steps after which all environments are cut off (truncated) and begin again from a seed of their own:
        TorchRL cannot save an environment, so a resumed run plays the steps since then again. None: never.

    Raises EnvError for paths that lead nowhere, wrong arguments, and specs that no policy can read or answer.
    """

    def __init__(
        self,
        env: str,
        num_envs: Annotated[int, Field(ge=1)] = 16,
        max_steps: Annotated[int, Field(ge=1)] | None = 100,
        vectorised: str | None = None,
        workers: Annotated[int, Field(ge=0)] = 0,
        state: str | None = None,
        restart_every: Annotated[int, Field(ge=1)] | None = 1000,
        kwargs: dict[str, Any] | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.num_envs, self.device, self.name = num_envs, torch.device(device), f"env.env={env!r}"
        self._keep(restart_every, max_steps)
        self.stream = Stream(seed, self.device)
        with self.stream:
            self.env = self._make(located(env, EnvBase), dict(kwargs or {}), vectorised, workers)
        self.dims = len(self.env.batch_size)
        self._groups = self._read_groups()
        self._ends = AgentEnds(num_envs, {n: (g.spec.n_agents, g.flags) for n, g in self._groups.items()})
        self._state = None if state is None else self._checked(whole(state), "state")
        size = None if state is None else self.env.full_observation_spec[state].shape[self.dims :].numel()
        self.spec = EnvSpec({name: g.spec for name, g in self._groups.items()}, size, max_steps)
        self.reset(seed)

    # ---- building ------------------------------------------------------------------------------------------------

    def _make(self, make: Any, kwargs: dict[str, Any], vectorised: str | None, workers: int) -> EnvBase:
        if vectorised is not None:
            kwargs[vectorised] = self.num_envs
        try:
            first = make(**kwargs)
        except (TypeError, ImportError, ValueError) as error:
            raise EnvError(f"{self.name}: refuses env.kwargs={kwargs}: {' '.join(str(error).split())[:300]}") from error
        if not isinstance(first, EnvBase):
            raise EnvError(f"{self.name} makes a {type(first).__name__}, no torchrl.envs.EnvBase.")
        self._map, batch = getattr(first, "group_map", None) or {}, list(first.batch_size)
        if vectorised is not None:
            if batch != [self.num_envs]:
                raise EnvError(f"{self.name}: env.vectorised={vectorised} makes {batch} at once, not {self.num_envs}.")
            return first
        if batch:
            raise EnvError(
                f"{self.name} is vectorised already, {batch}: name the argument that sets how many with env.vectorised."
            )
        first.close()
        one = partial(make, **kwargs)
        processes = max((n for n in range(1, workers + 1) if self.num_envs % n == 0), default=0)
        if not processes:
            return SerialEnv(self.num_envs, one)
        each = self.num_envs // processes
        return ParallelEnv(processes, partial(SerialEnv, each, one), mp_start_method="spawn")

    def _checked(self, key: Key, what: str) -> Key:
        known = [whole(k) for k in self.env.full_observation_spec.keys(True, True)]
        if key not in known:
            raise EnvError(f"env.{what}={'.'.join(key)}: there is no such key; there are {sorted(known)}.")
        return key

    def _read_groups(self) -> dict[str, _Group]:
        keys = [whole(key) for key in self.env.action_keys]
        prefixes = [key[:-1] for key in keys]
        if len(set(prefixes)) < len(prefixes):
            raise EnvError(f"{self.name}: its action keys {keys} are several for one group; one is allowed.")
        groups = {}
        for key, prefix in zip(keys, prefixes, strict=True):
            name = "agents" if len(keys) == 1 else "_".join(prefix) or "agents"
            shape = self.env.full_action_spec[prefix].shape if prefix else self.env.batch_size
            if len(shape) > self.dims + 1:
                raise EnvError(f"{self.name}: group {name} has the shape {list(shape)}, which is no row of agents.")
            count = shape[self.dims] if len(shape) > self.dims else 1
            leaf = self.env.full_action_spec[key]
            action = action_of(leaf, self.dims, count, f"{self.name}, {name}")
            observations, size = self._observations(prefix, name, count)
            parts, order = self._parts(observations, len(shape) > self.dims)
            mask = (*prefix, "action_mask")
            masked = action.kind == "discrete" and mask in [whole(k) for k in self.env.observation_keys]
            known = self._map.get("_".join(prefix), ())
            agents = tuple(known) if len(known) == count else tuple(f"{name}_{i}" for i in range(count))
            flags = agent_flags(self.env, prefix, count)
            masks = (("action",) if masked else ()) + (("alive",) if flags else ())
            spec = GroupSpec(name, agents, size, action, masks, ends=bool(flags), parts=parts)
            keys = self._reward(prefix, name), mask if masked else None
            groups[name] = _Group(spec, key, leaf, observations, *keys, flags, self._infos(prefix), order)
        return groups

    def _observations(self, prefix: Key, name: str, count: int) -> tuple[list[Key], int]:
        """Keys of what a group sees, and how many numbers that is for each agent."""
        specs = {whole(k): v for k, v in self.env.full_observation_spec.items(True, True)}
        beside = {
            k: v
            for k, v in specs.items()
            if k[:-1] == prefix and k[-1] != "action_mask" and isinstance(v.dtype, torch.dtype)
        }
        observation_key = (*prefix, "observation")
        chosen = [observation_key] if observation_key in beside else sorted(beside)
        if not chosen:
            raise EnvError(f"{self.name}: group {name} has no observation of numbers; there are {sorted(specs)}.")
        sizes = [specs[key].shape[self.dims :].numel() for key in chosen]
        if any(size % count for size in sizes):
            raise EnvError(f"{self.name}: observations of {name} are not one row for each of its {count} agents.")
        return chosen, sum(size // count for size in sizes)

    def _infos(self, prefix: Key) -> dict[str, Key]:
        """Where numbers lie below the "info" of a group, or, where it has none, of the root: {name: key}."""
        keys = [
            whole(k) for k, v in self.env.full_observation_spec.items(True, True) if isinstance(v.dtype, torch.dtype)
        ]
        for above in ((*prefix, "info"), ("info",)):
            if found := {".".join(k[len(above) :]): k for k in keys if k[: len(above)] == above and k != above}:
                return found
        return {}

    def _parts(self, keys: list[Key], rows: bool) -> tuple[tuple[ObservationPart, ...], Tensor | None]:
        """What a group's observation is made of, and the order of its numbers; rows: whether agents have one each."""
        leaves = [self.env.full_observation_spec[key] for key in keys]
        shapes = [leaf.shape[self.dims + rows :] for leaf in leaves]
        if len(keys) == 1 and len(shapes[0]) < 2:
            return (), None
        return joined(
            [
                part_of(key[-1], shape, leaf.dtype == torch.uint8)
                for key, shape, leaf in zip(keys, shapes, leaves, strict=True)
            ]
        )

    def _reward(self, prefix: Key, name: str) -> Key:
        keys = [whole(key) for key in self.env.reward_keys]
        matches = [key for key in keys if key[:-1] == prefix] or [key for key in keys if len(key) == 1]
        if not matches:
            raise EnvError(f"{self.name}: group {name} has no reward; the keys are {keys}.")
        return matches[0]

    # ---- playing -------------------------------------------------------------------------------------------------

    def _restart(self, seed: int) -> None:
        """See `ReplayedEnv`. TorchRL's VmasEnv draws from one hidden generator that all VMAS environments share."""
        self._steps = torch.zeros(self.num_envs, dtype=torch.int64)
        self._ends.restart()
        self.stream.seed(seed)
        with self.stream:
            self.env.set_seed(seed)
            self._now = self.env.reset()
        self._led = self._choices(self._now)

    def _seen(self) -> tuple[dict[str, Tensor], Tensor | None]:
        observed, state = self._read(self._now)
        return {n: self._ends.veil(n, value, self._ends.alive) for n, value in observed.items()}, state

    def _read(self, tensors: TensorDictBase) -> tuple[dict[str, Tensor], Tensor | None]:
        observed = {}
        for name, group in self._groups.items():
            rows = [tensors.get(key).reshape(self.num_envs, group.spec.n_agents, -1) for key in group.observations]
            row = torch.cat([row.float() for row in rows], -1).to(self.device)
            observed[name] = row if group.order is None else row[..., group.order.to(self.device)]
        state = None if self._state is None else tensors.get(self._state).reshape(self.num_envs, -1).float()
        return observed, None if state is None else state.to(self.device)

    def masks(self) -> dict[str, dict[str, Tensor]]:
        """See `Env.masks`."""
        kinds = {"action": self._choices(self._now), "alive": self._ends.alive}
        return {
            n: {kind: masks[n].to(self.device) for kind, masks in kinds.items() if n in masks} for n in self._groups
        }

    def final_masks(self) -> dict[str, Tensor]:
        """See `Env.final_masks`."""
        return self._led

    def _choices(self, tensors: TensorDictBase) -> dict[str, Tensor]:
        """The masks of actions in what TorchRL gave, {group: bool [E, A, choices]}."""
        masked = {n: g for n, g in self._groups.items() if g.mask is not None}
        shapes = {n: (self.num_envs, g.spec.n_agents, -1) for n, g in masked.items()}
        return {n: tensors.get(g.mask).reshape(shapes[n]).bool().to(self.device) for n, g in masked.items()}

    def _advance(self, action: dict[str, Tensor]) -> Transition:
        """See `ReplayedEnv`; what has ended is restarted by TorchRL's own partial reset."""
        current = self._now.clone(False)
        for name, group in self._groups.items():
            current.set(group.action, encoded(action[name], group.spec.action, group.action_spec))
        with self.stream:
            current = self.env.step(current)
            moved = current.get("next")
            self._led = self._choices(moved)
            flags = {kind: self._flag(moved, kind) for kind in ("done", "terminated", "truncated")}
            self._steps += 1
            late = self._steps >= (self.spec.max_steps or 2**62)
            terminated = flags["terminated"]
            truncated = (flags["truncated"] | flags["done"] | late) & ~terminated
            over = terminated | truncated
            ended, cut = self._ends.step(moved, terminated, truncated)
            self._steps[over] = 0
            restarted = step_mdp(current)
            for key in self.env.done_keys:
                done_flag = restarted.get(key)
                ones = [1] * (done_flag.dim() - self.dims)
                mask = over.reshape(self.env.batch_size).reshape(*self.env.batch_size, *ones)
                # What an agent ended alone restarts nothing: its environment goes on.
                alone = whole(key) in self._ends.keys
                restarted.set(key, mask.expand_as(done_flag).clone() if alone else done_flag | mask)
            self._now = self.env.maybe_reset(restarted) if bool(over.any()) else restarted
        (after, state), (final, final_state) = self._seen(), self._read(moved)
        reward, infos = {}, {}
        for name, group in self._groups.items():
            gain = moved.get(group.reward).reshape(self.num_envs, -1).float()
            gain = gain.expand(self.num_envs, group.spec.n_agents).to(self.device)
            before = self._ends.before
            reward[name], final[name] = (self._ends.veil(name, value, before) for value in (gain, final[name]))
            infos[name] = {figure: self._told(moved.get(key), key, group) for figure, key in group.infos.items()}
        ends = (flag.to(self.device) for flag in (terminated, truncated))
        by_agent = ({n: flag.to(self.device) for n, flag in flags.items()} for flags in (ended, cut))
        return Transition(after, final, reward, *ends, state, final_state, infos, *by_agent)

    def _told(self, value: Tensor, key: Key, group: _Group) -> Tensor:
        """An info as float32 [E, A] or [E, A, N]; one of the root, or of no row for each agent, is every agent's."""
        count, rows = group.spec.n_agents, value.float().reshape(self.num_envs, 1, -1)
        own = key[: len(group.action) - 1] == group.action[:-1] and rows.shape[-1] % count == 0
        rows = rows.reshape(self.num_envs, count, -1) if own else rows.expand(-1, count, -1)
        return (rows.squeeze(-1) if rows.shape[-1] == 1 else rows).to(self.device)

    def _cut_off(self, moved: Transition, waiting: Tensor | None) -> None:
        """See `ReplayedEnv`: agents that are still there are cut off with their environment."""
        super()._cut_off(moved, waiting)
        for name, alive in self._ends.before.items():
            here = alive.to(self.device) & moved.truncated.unsqueeze(-1) & ~moved.agent_terminated[name]
            moved.agent_truncated[name] = here

    def _flag(self, moved: TensorDictBase, kind: str) -> Tensor:
        """Whether a flag of a kind is up, bool [E]: at the root, where it has one.

        Else any agent's; and where groups have flags of their own, whether all agents are over, one of them terminated.
        """
        keys = sorted((whole(key) for key in self.env.done_keys if whole(key)[-1] == kind), key=len)
        none = torch.zeros(self.num_envs, dtype=torch.bool)
        if not keys or len(keys[0]) == 1:
            return none if not keys else moved.get(keys[0]).reshape(self.num_envs, -1).any(-1)
        if self._ends.keys:
            return self._ends.all_over(moved, kind)
        return torch.stack([moved.get(key).reshape(self.num_envs, -1).any(-1) for key in keys]).any(0)

    def close(self) -> None:
        """Close the environment and its processes."""
        if not self.env.is_closed:
            self.env.close()
