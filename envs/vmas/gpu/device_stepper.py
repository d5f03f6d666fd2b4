"""The kernel path on a GPU: the host's part of a rollout is done before it, so that it can be one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.base import DeviceState, EnvError, Transition
from envs.kernel.backends.cuda.runtime import CudaStep
from envs.vmas.kernel_stepper import KernelStepper
from envs.vmas.simulator_state import over
from envs.vmas.world import VmasWorld

RENEWALS = 16  # new pools within a rollout for which there is memory; each takes as much as the environments


class DeviceStepper(KernelStepper):
    """As `KernelStepper`, and a rollout's steps may be launches and nothing else.

    `prepare` resets the pools that fall due within the rollout and puts them side by side, in the order in which the
    steps would have reset them, and it draws the row of every step: all of that depends on the step's number, not on
    what happens. So a prepared rollout is bitwise the same as one whose steps ask the host each. Rollouts that begin
    with a comparison (`Recheck`) are not prepared.

    why_not_captured: why no rollout of this length can be prepared; "" where it can, or where there is no kernel.
    """

    kernel: CudaStep | None

    def __init__(self, world: VmasWorld) -> None:
        self.why_not_captured, self._prepared, self._kernels, self._steps = "", False, 0, 0
        self._shifts = torch.empty(0, dtype=torch.int64, device=world.device)
        super().__init__(world)

    def _make(self, specialise: bool) -> None:
        super()._make(specialise)
        self._kernels += 1

    # ---- before a rollout

    def prepare(self, steps: int) -> None:
        """Do the host's part of a rollout, or leave it to its steps. Raises ActionError for actions of the last one."""
        self.check_actions(ask=True)
        self._leave()
        recheck, renewals = self.recheck, -(-steps // self.world.pool_every)
        kernel = self.ready()
        self.why_not_captured = "" if kernel is None else self._refusal(steps, renewals)
        compares = (recheck.due or recheck.due_next) and recheck.affordable()
        if kernel is None or self.why_not_captured or compares:
            return
        recheck.count(rollout=True)
        rows = torch.tensor(self._rows(steps, renewals))
        if len(self._shifts) != steps:
            self._shifts = torch.empty(steps, dtype=torch.int64, device=self.world.device)
        self._shifts.copy_(over(rows, self.world.device))
        self.kernel.bind_shifts(self._shifts)
        if self._bound is not self.kernel:
            self._bind()
        self._steps, self._prepared, self._ahead = steps, True, True

    def _refusal(self, steps: int, renewals: int) -> str:
        if self.drawn is not None:
            return f"resets draw {', '.join(self.world.shared_draws)} for the whole batch"
        if renewals > RENEWALS:
            every = f"env.pool_every={self.world.pool_every}"
            return f"its {steps} steps need {renewals} pools of resets ({every}), and there is room for {RENEWALS}"
        return ""

    def _rows(self, steps: int, renewals: int) -> list[int]:
        """Where environment 0 would restart from in each step, of all rows of all pools, which are made and loaded."""
        kernel, rows = self._roomy(renewals), []
        for _ in range(steps):
            if self.world.pool_is_due:
                kernel.next_pool()
                self._refresh_pool()
                if self.kernel is not kernel:  # resets broke a constant, once; rows so far become the new pool's
                    kernel = self._roomy(renewals)
                    rows = [row % kernel.pool_size for row in rows]
            rows.append(kernel.row(self.world.count_step()))
        return rows

    def _roomy(self, renewals: int) -> CudaStep:
        """The kernel, with room for the pool in use and that many more."""
        if self.kernel is None:
            raise EnvError(f"the scenario has changed since its kernel was built: {self.why}.")
        if self.kernel.pools <= renewals:
            self.kernel.make_room(renewals + 1)
            self._load_pool()
        return self.kernel

    def device_state(self) -> DeviceState | None:
        """As `Env.device_state`: of the rollout that was prepared; None where it was not."""
        if not self._prepared:
            return None
        masks = [] if self.world.agent_masks is None else [*self.world.agent_masks.stay(), *self._said.values()]
        stream = self.world.pool.stream
        drawn = [stream.generator] if stream.generator is not None else []
        return DeviceState([*self.kernel.memory, self._shifts, *masks], drawn, (self._kernels, self.kernel.pools))

    # ---- steps

    def step_into(self, t: int, action: dict[str, Tensor]) -> None:
        """As `KernelStepper.step_into`; of a prepared rollout the device's part alone, which a graph may capture."""
        if not self._prepared:
            super().step_into(t, action)
            return
        self._point(action)
        if self.kernel.noise:
            self.kernel.draw_from(self.world.pool.stream)
        self.kernel.step(t)
        if self.world.agent_masks is not None:
            self._settle(t)
            if t == self._steps - 1:
                self.world.agent_masks.stay()

    def step(self, action: dict[str, Tensor]) -> Transition:
        """As `KernelStepper.step`."""
        self._leave()
        return super().step(action)

    def load(self) -> None:
        """As `KernelStepper.load`."""
        super().load()
        self._leave()

    def _leave(self) -> None:
        """Steps ask the host again."""
        if self._prepared and self.kernel is not None:
            self.kernel.bind_shifts(None)
        self._prepared = False
