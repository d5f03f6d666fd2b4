"""One VMAS scenario in E environments: simulator, groups of agents, random streams and reset pool, stepped eagerly."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from envs.base import REFUSED, STATE, ActionError, EnvError, Transition, misshapen
from envs.grouping import Group, agent_actions, assign, flatten, flatten_info
from envs.kernel.verification.audit import StepAudit
from envs.observation_parts import of_tensors
from envs.remaining_time import RemainingTime
from envs.rng import Stream, pack_python, unpack_python
from envs.spec import EnvSpec, sample_actions
from envs.vmas.agent_masks import AgentMasks, veil
from envs.vmas.reset_pool import ResetPool
from envs.vmas.scenario_errors import check_outputs, naming_errors
from envs.vmas.simulator import (
    Simulator,
    build_simulator,
    find_scenario,
    global_state,
    reads_progress,
    uses_host_random,
)
from marl.core.seeding import spread


class VmasWorld:
    """What a `VmasEnv` is made of, open to kernels, recordings, live pages and comparisons.

    simulator: VMAS's environment, whose tensors lag behind while a kernel steps (`VmasEnv.simulator` does not).
    groups: {group: how its agents' observations are stacked and its actions split}. spec: what that comes to.
    pool: the simulator's state as named tensors, its random stream, and fresh states to restart from.
    agent_masks: which agents are alive and what they may choose; None where the scenario says nothing of it.
    ticks: steps since the last reset. pool_every: steps between new pools. settings: what `template` repeats.

    Args: as `VmasEnv`; audit: looks on while the first steps are made, or None.

    Raises:
        EnvError: unknown scenarios, keywords and impossible combinations.
    """

    def __init__(
        self,
        scenario: str,
        num_envs: int,
        max_steps: int | None = 100,
        continuous_actions: bool = True,
        multi_discrete: bool = False,
        heterogeneous: str = "split",
        groups: dict[str, list[str]] | None = None,
        global_state: bool = False,
        scenario_kwargs: dict[str, Any] | None = None,
        pool_every: int = 100,
        pool_size: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        audit: StepAudit | None = None,
        words: str = "continuous",
        observe_time: bool = False,
    ) -> None:
        kwargs = dict(scenario_kwargs or {})
        pool_size = max(num_envs, 64) + 1 if pool_size is None else pool_size
        _check(num_envs, max_steps, continuous_actions, multi_discrete, pool_every, pool_size)
        pool_size += pool_size == num_envs  # two sizes tell what is per environment from constants
        if words == "discrete" and not continuous_actions:
            raise EnvError("env.words=discrete needs env.continuous_actions=true: without, words are choices anyway.")
        self.scenario, self.num_envs, self.device = scenario, num_envs, torch.device(device)
        self.settings = {
            "scenario": scenario,
            "max_steps": max_steps,
            "continuous_actions": continuous_actions,
            "multi_discrete": multi_discrete,
            "heterogeneous": heterogeneous,
            "groups": groups,
            "global_state": global_state,
            "scenario_kwargs": kwargs,
            "words": words,
            "observe_time": observe_time,
        }
        self._time = RemainingTime(observe_time, max_steps)
        host = uses_host_random(find_scenario(scenario))
        resets = torch.device("cpu") if self.device.type == "cuda" else self.device  # see `ResetPool`
        stream, fresh_stream = Stream(spread(seed, 0), self.device, host), Stream(spread(seed, 1), resets, host)

        def build(copies: int, stream: Stream) -> Simulator:
            return build_simulator(
                scenario,
                copies,
                stream,
                continuous_actions=continuous_actions,
                multi_discrete=multi_discrete,
                max_steps=max_steps,
                scenario_kwargs=kwargs,
                words=words,
            )

        self._more: Callable[[Simulator], dict[str, Tensor]] | None = None
        self._global_state = global_state
        self.simulator = build(num_envs, stream)
        self.groups = self._make_groups(stream, heterogeneous, groups)
        fresh_simulator = build(pool_size, fresh_stream)
        with naming_errors(scenario, 0):
            self.pool = ResetPool(self.simulator, fresh_simulator, stream, fresh_stream, self.observe, audit)
        self.shared_draws = tuple(sorted(self.pool.drawn))
        self.pool_every = max_steps if self.shared_draws and max_steps else pool_every
        observation = self._restart(seed)
        self.spec = EnvSpec(
            {name: group.spec for name, group in self.groups.items()},
            observation[STATE].shape[-1] if global_state else None,
            max_steps,
        )

    def _make_groups(self, stream: Stream, heterogeneous: str, teams: dict[str, list[str]] | None) -> dict[str, Group]:
        sim = self.simulator
        with stream, naming_errors(self.scenario, 0):
            observations, rewards, terminated, _, infos = sim.step(sim.get_random_actions())
            names = [agent.name for agent in sim.agents]
            check_outputs(self.scenario, 0, self.num_envs, names, observations, rewards, terminated)
        sizes = self._widths = [flatten(o).shape[-1] for o in observations]
        parts = [of_tensors(o) for o in observations]
        actions = [agent_actions(sim, agent) for agent in sim.agents]
        flat = [{k: v for k, v in flatten_info(i).items() if v.dim() and len(v) == self.num_envs} for i in infos]
        members = assign(sim.agents, sizes, actions, heterogeneous, teams, parts)
        groups = {name: Group(name, who, sim.agents, sizes, actions, flat, parts) for name, who in members.items()}
        for group in groups.values():
            group.spec = self._time.spec(group.spec)
        with stream, naming_errors(self.scenario, 0):
            self.agent_masks = AgentMasks(self.scenario, sim, groups) or None
        return groups

    def template(self, num_envs: int, pool_size: int) -> VmasWorld:
        """Another world of the same settings, in which kernels are traced and compared: seed 0, on the CPU."""
        world = VmasWorld(**self.settings, num_envs=num_envs, pool_size=pool_size)
        if world.reads_progress:  # many values, so that none is taken for a constant
            for simulator in (world.simulator, world.pool.fresh_simulator):
                progress = simulator.scenario.progress
                progress.copy_(torch.linspace(0, 1, len(progress)))
            world.pool.refresh()
        return world

    # ---- between groups and the simulator's agents

    def observe(self, simulator: Simulator, observations: list[Any]) -> dict[str, Tensor]:
        """{group: float32 [E, A, F]} of what a simulator's agents see, and the global state where it is asked for.

        Who is alive and what is allowed lies among them as `AgentMasks` says; the dead are seen as they are.
        """
        observation = {name: group.observation(observations) for name, group in self.groups.items()}
        if self._global_state:
            observation[STATE] = global_state(simulator)
        if self._time.observed:
            observation = {key: self._time.append(seen, simulator.steps) for key, seen in observation.items()}
        if self.agent_masks is not None:
            observation |= self.agent_masks.observe(simulator)
        return observation if self._more is None else {**observation, **self._more(simulator)}

    def observe_more(self, measure: Callable[[Simulator], dict[str, Tensor]]) -> None:
        """From now on observations hold what `measure` gives of a simulator, {key: [E, F]}; the pool is reset."""
        self._more = measure
        self.pool.refresh()

    def split_actions(self, action: dict[str, Tensor]) -> list[Tensor]:
        """{group: [E, A, D]} -> each agent's action in the simulator's order. EnvError for other groups or shapes."""
        parts: list[Any] = [None] * len(self.simulator.agents)
        for name, group in self.groups.items():
            value, spec = action.get(name), group.spec
            shape = (self.num_envs, spec.n_agents, spec.action.size)
            if value is None or value.shape != shape:
                raise misshapen(name, shape, value)
            group.split_actions(value, parts)
        return parts

    def random_action(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """As `Env.random_action`."""
        return sample_actions(self.spec, self.num_envs, self.device, generator, self.masks())

    def masks(self) -> dict[str, dict[str, Tensor]]:
        """As `Env.masks`."""
        return {} if self.agent_masks is None else self.agent_masks.now

    # ---- steps

    def _restart(self, seed: int | None) -> dict[str, Tensor]:
        if seed is not None:
            self.pool.stream.seed(seed)
            self.pool.fresh_stream.seed(spread(seed, 1))
            self._offsets = random.Random(spread(seed, 2))
        self.ticks = 0
        observation = self.pool.reset_simulator()
        if self.agent_masks is not None:
            self.agent_masks.take(observation)
            observation = {key: value.clone() for key, value in observation.items()}  # the pool's own may be among them
            veil(observation, self.masks())
        return observation

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> dict[str, Tensor]:
        """Restart all environments; their observation by group, the global state under `STATE`. See `VmasEnv.reset`.

        What the scenario says of its agents' lives lies among them (`AgentMasks`), and the dead see zeros.
        """
        return self._restart(seed)

    @property
    def pool_is_due(self) -> bool:
        """Whether the next step begins with a new pool."""
        return (self.ticks + 1) % self.pool_every == 0

    def count_step(self) -> int:
        """A step is made; the row of the pool from which environments restart that end in it."""
        self.ticks += 1
        return self._offsets.randrange(self.pool.size)

    @torch.no_grad()
    def step(self, action: dict[str, Tensor]) -> Transition:
        """One step by the simulator. See `VmasEnv.step`."""
        sim, pool = self.simulator, self.pool
        with pool.stream:
            try:
                handed = self.split_actions(action)
                for name, group in self.groups.items():
                    if group.wrap and not bool(group.spec.action.chosen(action[name]).all()):
                        raise ActionError(f"the simulator refused the action of group {name!r}: {REFUSED}.")
                with naming_errors(self.scenario, self.ticks + 1):
                    observations, rewards, terminated, over, infos = sim.step(handed)
            except AssertionError as error:
                reason = f": {error}" if str(error) else ""
                raise ActionError(f"the simulator refused the action: {REFUSED}{reason}.") from error
        names = [agent.name for agent in sim.agents]
        check_outputs(
            self.scenario, self.ticks + 1, self.num_envs, names, observations, rewards, terminated, self._widths
        )
        with naming_errors(self.scenario, self.ticks + 1):
            observation = self.observe(sim, observations)
        truncated = over & ~terminated
        done = over | terminated
        if self.pool_is_due:
            pool.refresh()
        offset = self.count_step()
        pool.merge(done, offset)
        here = done.view(-1, 1, 1)
        after = {
            key: torch.where(here if value.dim() == 3 else here[..., 0], pool.fresh_rows(key, offset), value)
            for key, value in observation.items()
        }
        state, next_state = after.pop(STATE, None), observation.pop(STATE, None)
        reward = {name: group.reward(rewards) for name, group in self.groups.items()}
        ends = ({}, {}) if self.agent_masks is None else self.agent_masks.settle(reward, observation, after, truncated)
        return Transition(
            observation=after,
            next_observation=observation,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            state=state,
            next_state=next_state,
            info={name: group.info(infos) for name, group in self.groups.items()},
            agent_terminated=ends[0],
            agent_truncated=ends[1],
        )

    @property
    def reads_progress(self) -> bool:
        """Whether the scenario reads how far the run is (`Env.set_progress`)."""
        return reads_progress(self.simulator.scenario)

    @torch.no_grad()
    def set_progress(self, progress: float) -> bool:
        """Tell the scenario and the pool, which is reset, how far the run is; whether that is news.

        What is drawn once for the whole batch stays: it changes with the pool's own resets only.
        """
        told = [simulator.scenario.progress for simulator in (self.simulator, self.pool.fresh_simulator)]
        if all(bool((value == progress).all()) for value in told):
            return False
        for value in told:
            value.fill_(progress)
        if not self.shared_draws:
            self.pool.refresh()
        return True

    # ---- snapshots

    def snapshot(self) -> dict[str, Tensor]:
        """Everything that decides the next steps, as cloned tensors under flat names."""
        saved = self.pool.snapshot()
        saved["offsets"] = pack_python(self._offsets.getstate())
        saved["ticks"] = torch.tensor(self.ticks)
        return saved if self.agent_masks is None else saved | self.agent_masks.snapshot()

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Go back to a snapshot of a world with the same settings; raises EnvError for another's."""
        self.pool.restore(snapshot)
        self._offsets.setstate(unpack_python(snapshot["offsets"]))
        self.ticks = int(snapshot["ticks"])
        if self.agent_masks is not None:
            self.agent_masks.restore(snapshot)


def find_device(device: str | torch.device) -> torch.device:
    """The device of that name. Raises EnvError where there is none."""
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise EnvError(f"env.device={device!r} is no device; write 'cpu', 'cuda' or 'cuda:0'.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise EnvError(f"env.device={device!r}: no CUDA device is available here; use 'cpu'.")
    return chosen


def _check(num_envs: int, max_steps: int | None, continuous: bool, multi_discrete: bool, every: int, size: int) -> None:
    for key, value in (("num_envs", num_envs), ("max_steps", max_steps), ("pool_every", every), ("pool_size", size)):
        if value is not None and value < 1:
            raise EnvError(f"env.{key}={value} must be at least 1.")
    if continuous and multi_discrete:
        raise EnvError("env.multi_discrete=true needs env.continuous_actions=false.")
