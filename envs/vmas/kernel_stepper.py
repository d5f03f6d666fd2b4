"""The kernel path of a VMAS environment: the same transitions as the simulator's, from one compiled call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from envs.base import STATE, ActionError, EnvError, Transition, misshapen
from envs.infos import InfoBuffers
from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.compile import Compiled, ScenarioState, compiled
from envs.kernel.tracing.tape import ConstantChanged
from envs.kernel.tracing.trace import drawn_values
from envs.kernel.verification.audit import python_state
from envs.kernel.verification.recheck import Recheck
from envs.python_state.state import SIZE
from envs.vmas.agent_masks import is_said
from envs.vmas.world import VmasWorld

CHOICES = 16  # kernels for different values of what resets draw for the whole batch
SPREAD = 100.0  # µs of work from which a second thread pays
SPEED = 1e-4  # µs per operation and environment, on one thread; only to choose the number of threads


class KernelStepper:
    """Steps a world by its kernel. The simulator's own tensors are filled in when they are asked for (`store`).

    `why` is set instead where there is no kernel; `drawn` is what the kernel is for, of what resets draw for the whole
    batch, or None. A kernel is compared with the simulator of this very environment before its first use, and again on
    the 1st, 10th, 100th, 1,000th … rollout, from the run's own states.
    """

    def __init__(self, world: VmasWorld) -> None:
        self.world = world
        self.why, self.kernel = "", None
        self.drawn: dict[str, Any] | None = None
        self._seen: set[str] = set()
        self.recheck = Recheck(world)
        self._make(specialise=True)

    def _make(self, specialise: bool) -> None:
        self.specialised, self._ahead, self._loaded, self._bound = specialise, False, False, None
        compilation = compiled(self.world, specialise)
        if compilation.varies:
            self.drawn = drawn_values(self.world.pool)
            self._seen.add(repr(self.drawn))
            compilation = compiled(self.world, specialise, self.drawn)
            if len(self._seen) > CHOICES:
                compilation = Compiled(why=f"resets draw more than {CHOICES} different values for the whole batch")
        self.why, self.compilation = compilation.why, compilation
        if not compilation.why:
            self.why = self.recheck.at_start(compilation, specialise)
        self._left_out = None
        self._values = self._watched()
        if self.why:
            self.kernel = None
            return
        work = SPEED * compilation.facts["operations"] * self.world.num_envs
        threads = max(1, min(torch.get_num_threads(), int(work / SPREAD)))
        self.kernel: KernelStep | None = compilation.step(self.world.num_envs, threads)
        self._outputs = []  # (name to bind, kind, group, key, shape, dtype)
        for key, _ in self.kernel.places.outputs:
            shape = (self.world.num_envs, *self.kernel.places.inner[key])
            self._outputs.append((key, shape))
            if key in self.kernel.places.restarted:
                self._outputs.append((("after", *key), shape))
        self._shapes = {n: (self.world.num_envs, g.n_agents, g.action.size) for n, g in self.world.spec.groups.items()}
        self._dtypes = {n: g.action.dtype for n, g in self.world.spec.groups.items()}

    # ---- what may have changed

    def _watched(self) -> dict[str, Any]:
        """What may have been changed while the kernel stepped, code and globals too: {path: token}."""
        if not self.compilation.binary:
            return {}
        pool = self.world.pool
        pool.main.refresh()
        if self._left_out is None:
            self._left_out = ScenarioState(self.world).left_out | pool.drawn | pool.evolving
        tokens = {path: token for path, token in python_state(self.world.simulator, pool.main).tokens.items()
                 if path not in self._left_out and not path.endswith(SIZE)}
        for path, slot in pool.main.tensors.items():
            if pool.axes.get(path) is None and path not in pool.drawn | pool.evolving | pool.passing:
                tokens[path] = (tuple(slot.value.shape), slot.value.tolist())
        return tokens

    # ---- state in and out

    def _read(self, path: str) -> Tensor:
        return self.world.pool.main.tensors[path].value

    def load(self) -> None:
        """The simulator's state and pool were changed: take them over at the next step."""
        self._ahead = self._loaded = False

    def _load(self) -> None:
        pool = self.world.pool
        pool.main.refresh()
        if (self.drawn is not None and drawn_values(pool) != self.drawn) or self._watched() != self._values:
            self._make(self.specialised)
            if self.kernel is None:
                return
        try:
            self.kernel.load_state(self._read)
            self._load_pool()
        except ConstantChanged:
            if not self.specialised:
                raise
            self._make(specialise=False)  # a state that resets never give: a kernel that assumes nothing
            if self.kernel is None:
                raise EnvError(f"the kernel was built for other states, and {self.why}.") from None
            self.kernel.load_state(self._read)
            self._load_pool()
        self._loaded = True

    def ready(self) -> KernelStep | None:
        """The kernel, the present state loaded: another one where that has changed it, or none."""
        if not self._loaded and self.kernel is not None:
            self._load()
        return self.kernel

    def _load_pool(self) -> None:
        pool = self.world.pool
        observed = {("observation", name): value for name, value in pool.observed.items()}
        self.kernel.load_pool(pool.read_fresh, pool.size, observed)

    def _refresh_pool(self) -> None:
        """New resets; those that break a constant of the kernel's get one that assumes nothing."""
        self.world.pool.refresh()
        try:
            self._load_pool()
        except ConstantChanged:
            self.store()
            self.load()
            self._load()

    def store(self) -> None:
        """Fills in the simulator's tensors, if the kernel has stepped since."""
        if not self._ahead:
            return
        self.kernel.fill(self.world.pool.main)
        self._ahead = False

    # ---- steps

    def _eager(self, action: dict[str, Tensor]) -> bool:
        """Whether the simulator must make the next step: it draws something new for the whole batch, or has to."""
        if self.ready() is None:
            return True
        if self.drawn is not None and self.world.pool_is_due:
            return True
        if self.world.pool_is_due:
            self._check_shapes(action)
            self._refresh_pool()
        if self.recheck.due and self.recheck.affordable():
            self._check_shapes(action)
            self.store()
            try:
                exact = {name: action[name].to(self._dtypes[name]) for name in self._shapes}
                self.recheck.in_run(self.compilation, exact)
            finally:
                self._ahead = True
        return False

    def _by_simulator(self, action: dict[str, Tensor]) -> Transition:
        self.store()
        self.load()
        return self.world.step(action)

    def _check_shapes(self, action: dict[str, Tensor]) -> None:
        for name, shape in self._shapes.items():
            value = action.get(name)
            if value is None or value.shape != shape:
                raise misshapen(name, shape, value)

    def _before(self, action: dict[str, Tensor]) -> int:
        world, kernel = self.world, self.kernel
        self._check_shapes(action)
        for name in self._shapes:
            value = action[name]
            if value.dtype != self._dtypes[name] or not value.is_contiguous():
                value = value.to(self._dtypes[name]).contiguous()
            kernel.point("action", name, tensor=value)
        if kernel.noise:
            with world.pool.stream:
                kernel.draw()
        self._ahead = True
        return world.count_step()

    def _after(self) -> None:
        if self.kernel.saw_nan.value:
            self.kernel.saw_nan.value = 0
            raise ActionError("the simulator refused the action: not a number, or outside of the allowed choices.")

    def step(self, action: dict[str, Tensor]) -> Transition:
        """As VmasEnv.step: new tensors each time."""
        self.recheck.count(rollout=False)
        if self._eager(action):
            return self._by_simulator(action)
        shift, num_envs = self._before(action), self.world.num_envs
        kernel = self.kernel
        out = {key: torch.empty(shape) for key, shape in self._outputs}
        ended, over = torch.empty(num_envs, dtype=torch.bool), torch.empty(num_envs, dtype=torch.bool)
        for key, value in out.items():
            kernel.point(*key, tensor=value)
        self._bound = None
        kernel.point("terminated", tensor=ended)
        kernel.point("truncated", tensor=over)
        kernel.step(0, shift)
        self._after()
        next_observation = {key[1]: value for key, value in out.items() if key[0] == "observation"}
        after = {key[2]: value for key, value in out.items() if key[0] == "after"}
        reward = {k[1]: v for k, v in out.items() if k[0] == "reward"}
        masks = self.world.agent_masks
        ends = ({}, {}) if masks is None else masks.settle(reward, next_observation, after, over)
        info: dict[str, dict[str, Tensor]] = {name: {} for name in self._shapes}
        for key, value in out.items():
            if key[0] == "info":
                dtype = self.compilation.dtypes[key]
                info[key[1]][key[2]] = value if dtype == torch.float32 else value.to(dtype)
        return Transition(
            observation=after, next_observation=next_observation, reward=reward, terminated=ended, truncated=over,
            state=after.pop(STATE, None), next_state=next_observation.pop(STATE, None), info=info,
            agent_terminated=ends[0], agent_truncated=ends[1])

    def bind_rollout(self, observation: dict[str, Tensor], next_observation: dict[str, Tensor],
                     reward: dict[str, Tensor], terminated: Tensor, truncated: Tensor, state: Tensor | None = None,
                     next_state: Tensor | None = None, info: InfoBuffers | None = None,
                     ends: dict[str, tuple[Tensor, Tensor]] | None = None) -> None:
        """Names the rollout buffers that `step_into(t, …)` writes to.

        observation: {group: [T, E, A, F]}, entry t the observation after step t (pass `buffer[1:]`);
        next_observation, reward, terminated and truncated likewise. Contiguous, float32 and bool. info, ends: as for
        `Env.bind_rollout`.
        """
        self._info, self._ends = info, ends or {}
        self._rollout = {("after", "observation", g): v for g, v in observation.items()}
        self._rollout |= {("observation", g): v for g, v in next_observation.items()}
        self._rollout |= {("reward", g): v for g, v in reward.items()}
        self._rollout |= {("terminated",): terminated, ("truncated",): truncated}
        if state is not None:
            self._rollout |= {("after", "observation", STATE): state, ("observation", STATE): next_state}
        self._bound = None

    def step_into(self, t: int, action: dict[str, Tensor]) -> None:
        """One step whose results go to entry t of the buffers of `bind_rollout`."""
        if t == 0:
            self.recheck.count(rollout=True)
        if self._eager(action):
            self._write(t, self._by_simulator(action))
            return
        shift = self._before(action)
        if self._bound is not self.kernel:
            rollout = self._rollout | self._info_buffers()
            self.kernel.bind({key: None for key, _ in self._outputs if key not in rollout})
            self.kernel.bind(rollout, steps=True)
            self._bound = self.kernel
            if self.world.agent_masks is not None:
                self._said = {key: torch.empty(shape) for key, shape in self._outputs if is_said(key)}
                self.kernel.bind(self._said)
        self.kernel.step(t, shift)
        self._after()
        if self.world.agent_masks is not None:
            self._settle(t)

    def _settle(self, t: int) -> None:
        """Ends of agents and zeros for the dead, in entry t of the rollout's buffers."""
        rows = {key: buffer[t] for key, buffer in self._rollout.items()} | self._said
        moved = {key[1]: row for key, row in rows.items() if key[0] == "observation"}
        after = {key[2]: row for key, row in rows.items() if key[0] == "after"}
        reward = {key[1]: row for key, row in rows.items() if key[0] == "reward"}
        self._write_ends(t, *self.world.agent_masks.settle(reward, moved, after, rows["truncated",]))

    def _write_ends(self, t: int, terminated: dict[str, Tensor], truncated: dict[str, Tensor]) -> None:
        for name, (agent_terminated, agent_truncated) in self._ends.items():
            agent_terminated[t].copy_(terminated[name])
            agent_truncated[t].copy_(truncated[name])

    def _info_buffers(self) -> dict[tuple, Tensor]:
        """Where the kernel writes infos: {name to bind: float32 [T, E, A, …]}."""
        if self._info is None:
            return {}
        inner = self.kernel.places.inner
        buffers = {key: self._info.buffer(*key[1:], inner[key][1:]) for key, _ in self._outputs if key[0] == "info"}
        return {key: buffer for key, buffer in buffers.items() if buffer is not None}

    def _write(self, t: int, step: Transition) -> None:
        """Copies a transition of the simulator's to entry t of the rollout's buffers."""
        values = {("after", "observation", g): v for g, v in step.observation.items()}
        values |= {("observation", g): v for g, v in step.next_observation.items()}
        values |= {("reward", g): v for g, v in step.reward.items()}
        values |= {("terminated",): step.terminated, ("truncated",): step.truncated}
        values |= {("after", "observation", STATE): step.state, ("observation", STATE): step.next_state}
        for key, buffer in self._rollout.items():
            buffer[t].copy_(values[key])
        self._write_ends(t, step.agent_terminated, step.agent_truncated)
        if self._info is not None:
            self._info.write(t, step.info)
