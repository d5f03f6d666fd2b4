"""Steps of a VMAS environment that gradients pass through: torch's backward pass runs the compiled gradient kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from envs.base import EnvError, Transition
from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.compile_gradient import CompiledGradient, compiled_gradient
from envs.kernel.ir.gradient import TABLE
from envs.vmas.env import VmasEnv
from envs.vmas.gradients.step_gradient import (
    OTHERWISE,
    Made,
    StepGradient,
    check_differentiable,
    outputs_of,
    with_outputs,
)
from envs.vmas.gradients.whereabouts import Whereabouts
from envs.vmas.simulator_state import over


class _Carry(torch.autograd.Function):
    """The state as another kernel lays it out; the gradient of what both hold is handed on."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, laid_out: Tensor, rows: Tensor, their_rows: Tensor) -> Tensor:
        ctx.shape, ctx.rows, ctx.their_rows = state.shape, rows, their_rows
        return laid_out.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        before = gradient.new_zeros(ctx.shape)
        before[ctx.their_rows] = gradient[ctx.rows]
        return before, None, None, None


class DifferentiableSteps:
    """Makes an environment's ordinary steps, and lets torch's backward pass run through them.

        steps = DifferentiableSteps(env)
        observation, _ = env.reset(seed=0)
        steps.begin()                                   # a window begins here: nothing earlier gets gradients
        for _ in range(20):
            transition = steps.step({"agents": actor(observation["agents"])})
            observation, total = transition.observation, total + transition.reward["agents"].mean()
        total.backward()

    A step is `env.step` by its kernel, with the same seeds, resets and results. Its rewards, observations and global
    states carry gradients with respect to the actions of this step and of those before it in the window. Episodes that
    end cut them: what follows a reset has none from before it, while the true final observation (`next_observation`)
    has. Random numbers of the step are held fixed. Kept per step are the state, the actions and the noise, all else is
    computed again on the way back; first derivatives only.

    env: continuous actions, stepped by a kernel, on a CPU or a GPU, which the host never waits for. kernel: compiled on
    first use, then kept on disk.

    Raises:
        EnvError: the scenario has no kernel, or its actions or its step have no gradients; says why.
    """

    def __init__(self, env: VmasEnv) -> None:
        self.env = env
        check_differentiable(env)
        self._whereabouts = Whereabouts(env.device)
        self._kernels: dict[str, GradientKernel] = {}
        self._step: KernelStep | None = None
        self._state: Tensor | None = None
        self._tables: dict[str, Tensor] = {}
        self.compilation: CompiledGradient = self._prepare()

    # ---- kernels

    def _prepare(self) -> CompiledGradient:
        """The gradients of the kernel that the environment steps by now."""
        stepper = self.env.stepper
        step = stepper.ready()
        if step is None:
            raise EnvError(f"{self.env.scenario!r} has no gradients any more: {stepper.why}.")
        found = compiled_gradient(self.env.world, stepper.compilation, stepper.drawn)
        if found.why:
            raise EnvError(f"{self.env.scenario!r} has no gradients: {found.why}; {OTHERWISE}.")
        if step.noise and stepper.drawn is not None:
            raise EnvError(
                f"{self.env.scenario!r} has no gradients: its steps draw random numbers, and its resets "
                f"draw for the whole batch; {OTHERWISE}."
            )
        if found.binary not in self._kernels:
            self._kernels[found.binary] = found.kernel(self.env.num_envs, step.threads)
        self._step, self._kernel = step, self._kernels[found.binary]
        return found

    # ---- windows

    def begin(self) -> None:
        """Begins a window at the environment's present state: gradients do not reach further back."""
        self._whereabouts.begin()
        step = self.env.stepper.ready()
        if step is not self._step:
            self.compilation = self._prepare()
        self._state = self._step.state.clone()
        self._tables = {path: self._step.tables[path].clone() for path in self._moving()}

    def _moving(self) -> list[str]:
        """Tables whose numbers carry gradients."""
        return [p.removeprefix(TABLE) for p, _, _ in self._kernel.places.tables if p.startswith(TABLE)]

    @property
    def state(self) -> Tensor:
        """float32 [S, padded E]: the state that is carried, field by field, with the gradients of the window."""
        if self._state is None:
            raise EnvError("no window has begun: call begin() after reset().")
        return self._state

    def _check(self) -> None:
        """The window must have come to the environment's present state."""
        step = self.env.stepper.ready()
        if step is not self._step:
            old, state = self._step.places.fields, self.state
            self.compilation = self._prepare()
            new = self._step.places.fields
            both = [(new.index(key), k) for k, key in enumerate(old) if key in new]
            rows, their_rows = over(torch.tensor(both, dtype=torch.long).reshape(-1, 2).T, self._step.device)
            self._state = _Carry.apply(state, self._step.state, rows, their_rows)
        self._whereabouts.check(self._step.state, self.state.detach())

    def step(self, action: dict[str, Tensor]) -> Transition:
        """One step of `env` with {group: float32 [E, A, D]}; what it gives carries gradients. See `VmasEnv.step`.

        Raises EnvError as `env.step` does, and where the environment is not where the window's last step left it (on a
        GPU in a later window).
        """
        self._check()
        step, kernel = self._step, self._kernel
        groups = list(self.env.spec.groups)
        tables = {path: table.clone() for path, table in step.tables.items()}
        actions = [action[g].float().contiguous() if g in action else None for g in groups]
        transition = self.env.step({g: a.detach() for g, a in zip(groups, actions, strict=True) if a is not None})
        now = self.env.stepper.ready() or step  # another one where resets gave what the kernel did not know
        noise = now.random.clone() if step.noise else None
        moved = {path: now.tables[path].clone() for path in self._tables}
        made = Made(kernel, groups, noise, tables, transition.done, outputs_of(transition), step.state.clone(), moved)
        self._state, *values = StepGradient.apply(made, self._state, *self._tables.values(), *actions)
        self._tables, values = dict(zip(moved, values, strict=False)), values[len(moved) :]
        return with_outputs(transition, dict(zip(made.outputs, values, strict=True)))
