"""The line-up of a run: who acts for each group, in a rollout and in evaluations.

Shapes: T time, E environments, A agents in a group, F features, D action dimensions.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.algorithms.base import Algorithm
from agents.models.actor import Actor
from agents.players import scripted
from agents.players.scripted import Player
from agents.players.seats import Anyone, Seats
from agents.players.self_play import Pool, PoolCheckpointer
from agents.policies.group_settings import LEARN, POOL, algorithms, read, sizes
from agents.policies.policy import Policy
from envs.base import Env
from marl.callbacks.base import Callback
from marl.core import distributed
from marl.core.distributed import stream
from marl.core.errors import UserError
from marl.core.seeding import generator


class Lineup:
    """Groups that learn, and what the others do.

    Args:
        env: the environment that is trained in.
        algo: the run's algorithm.
        groups: {group: settings} as `agents.policies.group_settings.GroupSettings` takes them; None: all groups learn.
        seed: the run's.

    Attributes:
        algos: {group: its algorithm} of the groups that learn.
        partly: the learning groups that do not act everywhere themselves.
        env_slices: {group: the environments in which another policy plays it}.
        all_learn: whether every group learns everywhere, so that nothing here is needed.
        pools: {group: its past versions} of those that past versions play, everywhere or in some environments.

    Raises:
        UserError: settings that fit neither the groups nor the algorithm, or self-play in several processes.
    """

    def __init__(self, env: Env, algo: Algorithm, groups: Mapping[str, Any] | None, seed: int) -> None:
        self.env, self.seed = env, seed
        self.settings = read(groups, env.spec)
        self.algos = algorithms(algo, self.settings)
        self.pools: dict[str, Pool] = {}
        pooled = [name for name, one in self.settings.items() if one.pools]
        if pooled and distributed.world() > 1:
            raise UserError(f"groups.{pooled[0]}: plays past versions, in a run of one process only")
        self.env_slices = self._env_slices()
        self.partly = frozenset(self.env_slices) & frozenset(self.algos)
        self.generator = generator(seed, stream("players"), env.device)
        self.all_learn = all(one.learns and not one.past for one in self.settings.values())

    def _env_slices(self) -> dict[str, slice]:
        """The environments in which another policy plays a group: all, or a share of their own for `past`."""
        slices, start = {}, 0
        for name, one in self.settings.items():
            if not one.learns:
                slices[name] = slice(None)
            elif one.past:
                count = round(one.past * self.env.num_envs)
                if not 0 < count < self.env.num_envs or start + count > self.env.num_envs:
                    raise UserError(
                        f"groups.{name}.past={one.past}: of env.num_envs={self.env.num_envs} that are {count} "
                        f"environments; between 1 and {self.env.num_envs - max(start, 1)} are possible"
                    )
                slices[name] = slice(start, start + count)
                start += count
        return slices

    def assign(self, actors: Mapping[str, Actor]) -> list[Callback]:
        """Take in the actors that learn; then players and pools exist. Returns callbacks that the pools need."""
        self.actors, self.players = dict(actors), {}
        for name, one in self.settings.items():
            if one.pools:
                without_memory(self.actors[one.of or name], f"groups.{name}")
                self.pools[name] = Pool(name, one, self.actors[one.of or name], self.seed)
            elif not one.learns:
                self.players[name] = self.player("policy", name, self.env)
        return [PoolCheckpointer(list(self.pools.values()))] if self.pools else []

    def check_evaluation(self) -> None:
        """Raise UserError before training for a player that an evaluation would refuse."""
        if any(one.eval_policy or one.eval_against for one in self.settings.values()):
            with torch.random.fork_rng(devices=[]):
                self.evaluation(self.env)

    def play_in(self, env: Env) -> None:
        """Go on in another environment, of the same groups and sizes."""
        self.env = env
        for name in self.players:
            self.players[name] = self.player("policy", name, env)

    def player(self, key: str, name: str, env: Env) -> Actor | Player:
        """What plays the group `name` of `env` by the setting `key`. Raises UserError for an unknown policy."""
        policy, where = getattr(self.settings[name], key), f"groups.{name}.{key}"
        if Path(policy).exists() or policy.endswith((".pt", ".safetensors")) or "/" in policy:
            return frozen(policy, self.settings[name].of or name, name, env, where)
        if policy not in scripted.NAMES and "." not in policy:
            names = ", ".join((*((LEARN, POOL) if key == "policy" else ()), *scripted.NAMES))
            raise UserError(
                f"{where}={policy}: no such policy (there are {names}, saved runs and policies, and dotted paths of "
                "classes)"
            )
        return scripted.make(policy, env, name, where)

    def digests(self) -> dict[str, str]:
        """{group: what the weights of the saved policy that plays it sum up to}, for a checkpoint."""
        return {name: _digest(one) for name, one in self.players.items() if isinstance(one, Actor)}

    def check_digests(self, saved: Mapping[str, str]) -> None:
        """Raises UserError where a saved policy is another than `digests` gave: the run would not go on as it was."""
        for name, digest in self.digests().items():
            if saved.get(name, digest) != digest:
                raise UserError(
                    f"groups.{name}.policy={self.settings[name].policy}: holds another policy than when this run "
                    "stopped; begin a new run with init_from=… instead"
                )

    def draw_versions(self, iteration: int) -> None:
        """Choose the past versions of a rollout."""
        for pool in self.pools.values():
            pool.load(iteration)

    @torch.no_grad()
    def act(self, actions: dict[str, Tensor], observed: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        """Put what others do into `actions` {group: [E, A, D]}, given observations and masks of actions [E, A, …]."""
        for name, rows in self.env_slices.items():
            observation, mask = observed[name][rows], masks.get(name)
            mask = None if mask is None else mask[rows]
            if name in self.pools:
                action = self.pools[name].act(observation, self.generator, mask)
            elif isinstance(self.players[name], Actor):
                action = _act(self.players[name], observation, self.generator, mask)
            else:
                action = self.players[name](observation, self.generator)
            if name in actions:
                whole = actions[name].clone()
                whole[rows] = action
                actions[name] = whole
            else:
                actions[name] = action

    def own(self, name: str, like: Tensor) -> Tensor | None:
        """Where a learning group played itself: bool as `like` [T, E, A]; None = everywhere."""
        if name not in self.env_slices:
            return None
        mask = torch.ones_like(like, dtype=torch.bool)
        mask[:, self.env_slices[name]] = False
        return mask

    def evaluation(self, env: Env, random: bool = False) -> dict[str, Anyone]:
        """Who plays each group of the evaluation's environment; random: uniform actions in the place of who learns."""
        players: dict[str, Anyone] = {}
        for name, one in self.settings.items():
            if one.eval_policy is not None:
                players[name] = self.player("eval_policy", name, env)
            elif one.learns:
                players[name] = scripted.make("random", env, name) if random else self.actors[name]
                if one.eval_against is not None:
                    others, count = self.player("eval_against", name, env), env.spec.groups[name].n_agents
                    players[name] = Seats(players[name], others, env.num_envs, count, env.device)
            elif one.policy == POOL:
                players[name] = self.actors[one.of]
            else:
                players[name] = self.player("policy", name, env)
        return players

    def counted(self) -> tuple[str, ...]:
        """The groups whose return is the run's: those that learn and play in evaluations."""
        learn = [name for name, one in self.settings.items() if one.learns]
        return tuple(name for name in learn if self.settings[name].eval_policy is None) or tuple(learn)


def _digest(actor: Actor) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(actor.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _act(actor: Actor, observation: Tensor, generator: torch.Generator, mask: Tensor | None) -> Tensor:
    return actor.head.to_env(actor.act(observation, generator=generator, mask=mask)[0])


def frozen(path: str, whose: str, name: str, env: Env, key: str | None = None) -> Actor:
    """The actor of the group `whose` of a saved policy, to play the group `name` of `env` as it is.

    key: the setting that names the path; None = the group's `policy`.

    Raises:
        UserError: no such policy, or of other sizes than the group.
    """
    policy, where = Policy.load(path, device=env.device), f"{key or f'groups.{name}.policy'}={path}"
    if whose not in policy.actors:
        raise UserError(f"groups.{name}.of={whose}: {path} has policies of {', '.join(policy.actors)}")
    trained, group = policy.spec.groups[whose], env.spec.groups[name]
    if sizes(trained) != sizes(group):
        raise UserError(f"{where}: sizes {sizes(trained)} differ from the group's {sizes(group)}")
    without_memory(policy.actors[whose], where)
    return policy.actors[whose].requires_grad_(False)


def without_memory(actor: Actor, key: str) -> None:
    """Raises UserError for a network with a memory, which is carried only for players that learn."""
    if actor.memory_shape is not None:
        raise UserError(f"{key}: past versions and saved policies play without a memory here; use another network")
