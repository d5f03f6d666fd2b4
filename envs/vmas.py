"""VMAS behind the contract: any scenario, vectorised auto-reset, own random streams, exact snapshots."""

from __future__ import annotations

import random
import warnings
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from envs import faults
from envs.base import STATE, ActionError, Env, EnvError, EnvSpec, Transition, misshapen
from envs.fast import FastStep
from envs.groups import Group, agent_actions, assign, flatten, flatten_info
from envs.kernel.audit import StepAudit
from envs.pool import Pool
from envs.random import Stream, pack_python, spread, unpack_python
from envs.simulator import Simulator, build_simulator, find_scenario, global_state, uses_host_random

MOST = 10_000_000  # environments; more would take minutes to say that there is no memory


class SlowPath(UserWarning):
    """A scenario has no kernel, and the warning says why; `env.fast=off` asks for none, without the warning."""


class VmasEnv(Env):
    """E copies of a VMAS scenario (Bettini et al. 2022), each restarted on its own when it ends.

    An environment that ends is continued from a freshly reset state drawn from a pool: `where(done, fresh, state)` on
    every tensor of the simulator's state, with no loop over environments and nothing leaving the device. The pool is
    reset anew every `pool_every` steps. `max_steps` truncates, and never terminates. The environment's randomness is
    its own stream: other environments and the caller's global generators are neither read nor moved.

    scenario: VMAS's name ("balance", "mpe/simple_spread" or just "simple_spread", "debug/goal") or the dotted path of
        your own class. scenario_kwargs: its keyword arguments.
    heterogeneous: groups whose agents differ in sizes or ranges are split ("split") or zero-padded ("pad").
    groups: {group: agent names or prefixes} instead of one group per name prefix.
    global_state: also return position, velocity, rotation and angular velocity of every entity, [E, S].
    pool_every: steps between resets of the pool. pool_size: its states, default max(num_envs, 64) + 1; must differ
        from num_envs. Scenarios that draw a value for the whole batch at reset (listed in `shared_draws`, e.g. the
        goal of simple_speaker_listener) draw it with each new pool, every max_steps steps instead: then all
        environments start a new episode together.
    fast: "auto" steps by a generated kernel (envs/kernel, docs/kernels.md) where the scenario allows it and a compiler
        is at hand, "kernel" insists, "off" runs the simulator eagerly. `path` says which it is, `why_eager` why not.

    Raises EnvError for unknown scenarios, keywords and impossible combinations.
    """

    def __init__(
        self,
        scenario: str = "balance",
        num_envs: Annotated[int, Field(ge=1, le=MOST)] = 60,
        max_steps: Annotated[int, Field(ge=1)] | None = 100,
        continuous_actions: bool = True,
        multi_discrete: bool = False,
        heterogeneous: Literal["split", "pad"] = "split",
        groups: dict[str, list[str]] | None = None,
        global_state: bool = False,
        scenario_kwargs: dict[str, Any] | None = None,
        pool_every: Annotated[int, Field(ge=1)] = 100,
        pool_size: Annotated[int, Field(ge=1, le=MOST)] | None = None,
        fast: Literal["auto", "kernel", "off"] = "auto",
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        kwargs = dict(scenario_kwargs or {})
        pool_size = max(num_envs, 64) + 1 if pool_size is None else pool_size
        self.device = _device(device)
        _check(num_envs, max_steps, continuous_actions, multi_discrete, pool_every, pool_size)
        self.num_envs = num_envs
        self.scenario = scenario
        host = uses_host_random(find_scenario(scenario))
        stream, nursery_stream = (Stream(spread(seed, i), self.device, host) for i in (0, 1))

        def build(copies: int, stream: Stream) -> Simulator:
            return build_simulator(scenario, copies, stream, continuous_actions=continuous_actions,
                                   multi_discrete=multi_discrete, max_steps=max_steps, scenario_kwargs=kwargs)

        self._fast: FastStep | None = None
        self._simulator = build(num_envs, stream)
        audit = StepAudit() if fast != "off" and self.device.type == "cpu" else None
        self._global_state = global_state
        self._groups = self._make_groups(stream, heterogeneous, groups)
        nursery = build(pool_size, nursery_stream)
        with faults.named(scenario, 0):
            self._pool = Pool(self._simulator, nursery, stream, nursery_stream, self._observe, audit)
        self.shared_draws = tuple(sorted(self._pool.drawn))
        self._pool_every = max_steps if self.shared_draws and max_steps else pool_every
        seen = self._restart(seed)
        self.spec = EnvSpec({name: group.spec for name, group in self._groups.items()},
                            seen[STATE].shape[-1] if global_state else None, max_steps)
        self.path, self.why_eager = "eager", f"env.fast={fast}"
        self.settings = {
            "scenario": scenario, "max_steps": max_steps, "continuous_actions": continuous_actions,
            "multi_discrete": multi_discrete, "heterogeneous": heterogeneous, "groups": groups,
            "global_state": global_state, "scenario_kwargs": kwargs}
        if fast != "off":
            self._choose(fast, audit)

    def _choose(self, fast: str, audit: StepAudit | None) -> None:
        """Takes the kernel path if there is a kernel; `why_eager` is one sentence if there is none."""
        if audit is None:
            made, self.why_eager = None, "kernels run on the CPU so far"
        elif audit.reason or self._pool.carried:
            rows = ", ".join(self._pool.carried.names)
            made, self.why_eager = None, audit.reason or f"the scenario keeps environments' state in {rows}"
        else:
            made = FastStep(self)
            self.why_eager = made.why
        if not self.why_eager:
            self._fast, self.path = made, "kernel"
        elif fast == "auto" and audit is not None:
            warnings.warn(f"{self.scenario} steps eagerly, tens of times slower than by a kernel: {self.why_eager}",
                          SlowPath, stacklevel=3)
        elif fast == "kernel":
            raise EnvError(f"env.fast=kernel is not possible for {self.scenario!r}: {self.why_eager}.")

    @property
    def simulator(self) -> Simulator:
        """VMAS's environment, its tensors as they are now. Changes to them count from the next step on."""
        if self._fast is not None:
            self._fast.store()
            self._fast.load()
        return self._simulator

    def _make_groups(self, stream: Stream, heterogeneous: str, teams: dict[str, list[str]] | None) -> dict[str, Group]:
        sim = self._simulator
        with stream, faults.named(self.scenario, 0):
            observations, rewards, terminated, _, infos = sim.step(sim.get_random_actions())
            names = [agent.name for agent in sim.agents]
            faults.check(self.scenario, 0, self.num_envs, names, observations, rewards, terminated)
        sizes = self._widths = [flatten(o).shape[-1] for o in observations]
        actions = [agent_actions(sim, agent) for agent in sim.agents]
        flat = [{k: v for k, v in flatten_info(i).items() if v.dim() and len(v) == self.num_envs} for i in infos]
        members = assign(sim.agents, sizes, actions, heterogeneous, teams)
        return {name: Group(name, who, sim.agents, sizes, actions, flat) for name, who in members.items()}

    def _observe(self, simulator: Simulator, observations: list) -> dict[str, Tensor]:
        seen = {name: group.observation(observations) for name, group in self._groups.items()}
        if self._global_state:
            seen[STATE] = global_state(simulator)
        return seen

    def _restart(self, seed: int | None) -> dict[str, Tensor]:
        if seed is not None:
            self._pool.stream.seed(seed)
            self._pool.nursery_stream.seed(spread(seed, 1))
            self._offsets = random.Random(spread(seed, 2))
        self._ticks = 0
        seen = self._pool.reset_simulator()
        if self._fast is not None:
            self._fast.load()
        return seen

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> tuple[dict[str, Tensor], Tensor | None]:
        """Restart all environments: {group: float32 [E, A, F]} and the global state float32 [E, S] or None.

        A seed restarts the random stream: the states are those of `vmas.make_env(…).reset(seed=seed)`, unless the
        scenario has `shared_draws`. Without one the stream goes on.
        """
        seen = self._restart(seed)
        state = seen.pop(STATE, None)
        return seen, state

    @torch.no_grad()
    def step(self, action: dict[str, Tensor]) -> Transition:
        """One step of all environments with {group: [E, A, D]}; those that end are restarted within it.

        Raises EnvError for actions of other groups or shapes, and for what the simulator refuses (nan).
        """
        return self._step_simulator(action) if self._fast is None else self._fast.step(action)

    def _step_simulator(self, action: dict[str, Tensor]) -> Transition:
        """The eager step."""
        sim, pool = self._simulator, self._pool
        with pool.stream:
            try:
                with faults.named(self.scenario, self._ticks + 1):
                    observations, rewards, terminated, over, infos = sim.step(self._hand_out(action))
            except AssertionError as error:
                told = f": {error}" if str(error) else ""
                raise ActionError("the simulator refused the action: not a number, or outside of the allowed choices"
                                  f"{told}.") from error
        names = [agent.name for agent in sim.agents]
        faults.check(self.scenario, self._ticks + 1, self.num_envs, names, observations, rewards, terminated,
                     self._widths)
        seen = self._observe(sim, observations)
        truncated = over & ~terminated
        done = over | terminated
        self._ticks += 1
        if self._ticks % self._pool_every == 0:
            pool.refresh()
        offset = self._offsets.randrange(pool.size)
        pool.merge(done, offset)
        here = done.view(-1, 1, 1)
        after = {key: torch.where(here if value.dim() == 3 else here[..., 0], pool.fresh_rows(key, offset), value)
                 for key, value in seen.items()}
        state, next_state = after.pop(STATE, None), seen.pop(STATE, None)
        return Transition(
            observation=after, next_observation=seen,
            reward={name: group.reward(rewards) for name, group in self._groups.items()},
            terminated=terminated, truncated=truncated, state=state, next_state=next_state,
            info={name: group.info(infos) for name, group in self._groups.items()})

    def figures(self) -> dict[str, float]:
        """"kernel_checks": how often the kernel was compared with the simulator in this process."""
        return {} if self._fast is None else {"kernel_checks": float(self._fast.recheck.checks)}

    def bind_rollout(self, *buffers: Any, **named: Any) -> None:
        """See `Env.bind_rollout`; a kernel writes to the buffers itself."""
        if self._fast is not None:
            self._fast.bind_rollout(*buffers, **named)
        else:
            super().bind_rollout(*buffers, **named)

    def step_into(self, t: int, action: dict[str, Tensor]) -> None:
        """See `Env.step_into`."""
        if self._fast is not None:
            self._fast.step_into(t, action)
        else:
            super().step_into(t, action)

    def _hand_out(self, action: dict[str, Tensor]) -> list[Tensor]:
        handed: list[Any] = [None] * len(self._simulator.agents)
        for name, group in self._groups.items():
            value, spec = action.get(name), group.spec
            shape = (self.num_envs, spec.n_agents, spec.action.size)
            if value is None or value.shape != shape:
                raise misshapen(name, shape, value)
            group.hand_out(value, handed)
        return handed

    def refresh_pool(self) -> None:
        """Reset the pool now: new states for environments that end from here on."""
        if self._fast is not None:
            self._fast.store()
            self._fast.load()
        self._pool.refresh()

    @torch.no_grad()
    def snapshot(self) -> dict[str, Tensor]:
        """Everything that decides the next steps, the pool and all random streams included, as cloned tensors."""
        if self._fast is not None:
            self._fast.store()
        saved = self._pool.snapshot()
        saved["offsets"] = pack_python(self._offsets.getstate())
        saved["ticks"] = torch.tensor(self._ticks)
        return saved

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Go back to a snapshot of an environment with the same settings; raises EnvError for another's."""
        self._pool.restore(snapshot)
        self._offsets.setstate(unpack_python(snapshot["offsets"]))
        self._ticks = int(snapshot["ticks"])
        if self._fast is not None:
            self._fast.load()


def _device(device: str | torch.device) -> torch.device:
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise EnvError(f"env.device={device!r} is no device; write 'cpu', 'cuda' or 'cuda:0'.") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise EnvError(f"env.device={device!r}: no CUDA device is available here; use 'cpu'.")
    return wanted


def _check(num_envs: int, max_steps: int | None, continuous: bool, multi_discrete: bool, every: int, size: int) -> None:
    for key, value in (("num_envs", num_envs), ("max_steps", max_steps), ("pool_every", every), ("pool_size", size)):
        if value is not None and value < 1:
            raise EnvError(f"env.{key}={value} must be at least 1.")
    if continuous and multi_discrete:
        raise EnvError("env.multi_discrete=true needs env.continuous_actions=false.")
    if size == num_envs:
        raise EnvError(f"env.pool_size={size} must differ from env.num_envs: that tells state from constants.")
