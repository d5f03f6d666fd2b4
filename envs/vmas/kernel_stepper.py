"""The kernel path of a VMAS environment: the same transitions as the simulator's, from one compiled call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from envs.base import REFUSED, STATE, ActionError, EnvError, Transition, misshapen, whole
from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.bound_rollout import BoundRollout
from envs.kernel.compile import Compiled, ScenarioState, compiled
from envs.kernel.tracing.tape import ConstantChanged
from envs.kernel.tracing.trace import drawn_values
from envs.kernel.verification.recheck import Recheck, watched
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
        self._here = self.kernel.device.type == "cpu"
        self._outputs = []  # (name to bind, kind, group, key, shape, dtype)
        for key, _ in self.kernel.places.outputs:
            shape = (self.world.num_envs, *self.kernel.places.inner[key])
            self._outputs.append((key, shape))
            if key in self.kernel.places.restarted:
                self._outputs.append((("after", *key), shape))
        groups = self.world.spec.groups.items()
        self._actions = [  # (group, where the kernel finds it, shape, dtype)
            (n, ("action", n), (self.world.num_envs, g.n_agents, g.action.size), g.action.dtype) for n, g in groups
        ]

    # ---- what may have changed

    def _watched(self) -> dict[str, Any]:
        """What may have been changed while the kernel stepped, code and globals too: {path: token}."""
        if not self.compilation.binary:
            return {}
        pool = self.world.pool
        pool.main.refresh()
        if self._left_out is None:
            self._left_out = ScenarioState(self.world).left_out | pool.drawn | pool.evolving
        return watched(self.world, self._left_out)

    # ---- state in and out

    def _read(self, path: str) -> Tensor:
        return self.world.pool.main.tensors[path].value

    def load(self) -> None:
        """The simulator's state and pool were changed: take them over at the next step."""
        self._ahead = self._loaded = False

    @torch.no_grad()
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

    @torch.no_grad()
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
        if not self._loaded and self.ready() is None:
            return True
        if self.world.pool_is_due:
            if self.drawn is not None:
                return True
            self._point(action)  # refuses it before anything has changed
            self._refresh_pool()
        if self.recheck.due and self.recheck.affordable():
            self._point(action)  # refuses it before anything has changed
            self._compare(action)
        return False

    @torch.no_grad()
    def _compare(self, action: dict[str, Tensor]) -> None:
        self.store()
        try:
            exact = {name: action[name].to(dtype) for name, _, _, dtype in self._actions}
            self.recheck.in_run(self.compilation, exact)
        finally:
            self._ahead = True

    @torch.no_grad()
    def _by_simulator(self, action: dict[str, Tensor]) -> Transition:
        self.store()
        self.load()
        return self.world.step(action)

    def _before(self, action: dict[str, Tensor]) -> int:
        self._point(action)
        if self.kernel.noise:
            self.kernel.draw_from(self.world.pool.stream)
        self._ahead = True
        return self.world.count_step()

    def _point(self, action: dict[str, Tensor]) -> None:
        point, here = self.kernel.point, self._here
        for name, place, shape, dtype in self._actions:
            value = action.get(name)
            if value is None or value.shape != shape:
                raise misshapen(name, shape, value)
            if here and not value.is_cpu:  # the kernel takes addresses; a GPU's looks itself
                raise EnvError(f"the actions of {name!r} lie on {value.device}, and the environment on cpu.")
            if value.requires_grad or value.dtype != dtype or not value.is_contiguous():
                value = value.detach()
                value = (whole(name, value) if dtype == torch.int64 else value.to(dtype)).contiguous()
            point(place, value)

    def check_actions(self, ask: bool = False) -> None:
        """Raises ActionError if a step refused its action; see `KernelStep.refused`."""
        if self.kernel is not None and self.kernel.refused(ask):
            raise refused_action()

    def step(self, action: dict[str, Tensor]) -> Transition:
        """As VmasEnv.step: new tensors each time. Nothing here asks autograd, so no block switches it off each time."""
        self.recheck.count(rollout=False)
        if self._eager(action):
            return self._by_simulator(action)
        shift, num_envs = self._before(action), self.world.num_envs
        kernel = self.kernel
        new = kernel.state.new_empty  # float32 on the kernel's device, whatever torch's defaults are
        out = {key: new(shape) for key, shape in self._outputs}
        ended, over = new(num_envs, dtype=torch.bool), new(num_envs, dtype=torch.bool)
        for key, value in out.items():
            kernel.point(key, value)
        self._bound = None
        kernel.point(("terminated",), ended)
        kernel.point(("truncated",), over)
        kernel.step(0, shift)
        if kernel.refused():
            raise refused_action()
        next_observation = {key[1]: value for key, value in out.items() if key[0] == "observation"}
        after = {key[2]: value for key, value in out.items() if key[0] == "after"}
        reward = {k[1]: v for k, v in out.items() if k[0] == "reward"}
        masks = self.world.agent_masks
        ends = ({}, {}) if masks is None else masks.settle(reward, next_observation, after, over)
        info: dict[str, dict[str, Tensor]] = {name: {} for name, *_ in self._actions}
        for key, value in out.items():
            if key[0] == "info":
                dtype = self.compilation.dtypes[key]
                info[key[1]][key[2]] = value if dtype == torch.float32 else value.to(dtype)
        return Transition(
            observation=after,
            next_observation=next_observation,
            reward=reward,
            terminated=ended,
            truncated=over,
            state=after.pop(STATE, None),
            next_state=next_observation.pop(STATE, None),
            info=info,
            agent_terminated=ends[0],
            agent_truncated=ends[1],
        )

    def bind_rollout(self, *buffers: Any, **named: Any) -> None:
        """Names the rollout buffers that `step_into(t, …)` writes to: arguments as for `BoundRollout`."""
        self._rollout, self._bound = BoundRollout(*buffers, **named), None

    def step_into(self, t: int, action: dict[str, Tensor]) -> None:
        """One step whose results go to entry t of the buffers of `bind_rollout`."""
        if t == 0:
            self.recheck.count(rollout=True)
        if self._eager(action):
            self._rollout.write(t, self._by_simulator(action))
            return
        shift, kernel = self._before(action), self.kernel
        if self._bound is not kernel:
            self._bind()
        kernel.step(t, shift)
        if kernel.refused():
            raise refused_action()
        if self.world.agent_masks is not None:
            self._settle(t)

    def _bind(self) -> None:
        """The kernel writes to the rollout's buffers from now on."""
        rollout = self._rollout.buffers | self._rollout.info_buffers(self.kernel.places)
        self.kernel.bind({key: None for key, _ in self._outputs if key not in rollout})
        self.kernel.bind(rollout, steps=True)
        self._bound = self.kernel
        if self.world.agent_masks is not None:
            new = self.kernel.state.new_empty
            self._said = {k: new(shape) for k, shape in self._outputs if is_said(k)}
            self.kernel.bind(self._said)

    def _settle(self, t: int) -> None:
        """Ends of agents and zeros for the dead, in entry t of the rollout's buffers."""
        rows = {key: buffer[t] for key, buffer in self._rollout.buffers.items()} | self._said
        moved = {key[1]: row for key, row in rows.items() if key[0] == "observation"}
        after = {key[2]: row for key, row in rows.items() if key[0] == "after"}
        reward = {key[1]: row for key, row in rows.items() if key[0] == "reward"}
        self._rollout.write_ends(t, *self.world.agent_masks.settle(reward, moved, after, rows["truncated",]))


def refused_action() -> ActionError:
    """What a step tells of an action that the simulator would not take."""
    return ActionError(f"the simulator refused the action: {REFUSED}.")
