"""Steps of a VMAS environment that gradients pass through: torch's backward pass runs the compiled gradient kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from envs.base import STATE, EnvError, Transition
from envs.kernel.backends.cpu_runtime import KernelStep
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.compile_gradient import CompiledGradient, compiled_gradient
from envs.vmas.env import VmasEnv

OTHERWISE = "algorithms that need no gradients of the simulator, such as mappo, take it as it is"


@dataclass
class _Made:
    """One step that was made: what its gradients need beside the state and the actions, and what it gave."""

    kernel: GradientKernel
    groups: list[str]
    noise: Tensor | None
    tables: dict[str, Tensor]  # of before the step
    over: Tensor  # bool [E]
    outputs: dict[tuple, Tensor]  # name of its gradient -> what the step gave
    after: Tensor  # the state after it


class _Step(torch.autograd.Function):
    """(state, actions) -> (state, outputs): values are those of a step already made, gradients the kernel's."""

    @staticmethod
    def forward(ctx: Any, made: _Made, state: Tensor, *actions: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.made = replace(made, outputs={}, after=torch.empty(0))  # what the step gave is not needed again
        ctx.names = list(made.outputs)
        ctx.save_for_backward(state, *actions)
        return made.after, *made.outputs.values()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, after: Tensor | None, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        made: _Made = ctx.made
        state, *actions = ctx.saved_tensors
        gradient = torch.zeros_like(state) if after is None else after.float().contiguous().clone()
        given = {("state",): state, ("gradient", "state"): gradient, ("noise",): made.noise, ("over",): made.over}
        given |= {("action", g): a for g, a in zip(made.groups, actions, strict=True)}
        given |= {n: None if g is None else g.contiguous() for n, g in zip(ctx.names, outputs, strict=True)}
        given |= {("table", p): made.tables[p].clone() if p in made.tables else torch.zeros(made.kernel.num_envs, n)
                  for p, n, _ in made.kernel.places.tables}
        of_actions = made.kernel(given)
        return None, gradient, *(of_actions[g].view_as(a) for g, a in zip(made.groups, actions, strict=True))


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

    env: on the CPU, continuous actions, stepped by a kernel. kernel: compiled on first use, then kept on disk.

    Raises:
        EnvError: the scenario has no kernel, or its actions or its step have no gradients; says why.
    """

    def __init__(self, env: VmasEnv) -> None:
        self.env = env
        name = env.scenario
        if env.stepper is None or env.path == "eager":
            raise EnvError(f"{name!r} has no gradients: it has no kernel, and {env.why_eager}; {OTHERWISE}.")
        choices = [group for group, spec in env.spec.groups.items() if spec.action.kind != "continuous"]
        if choices:
            raise EnvError(f"{name!r} has no gradients: the actions of {choices[0]!r} are choices, which have none "
                           f"(env.continuous_actions=true); {OTHERWISE}.")
        if env.world.agent_masks is not None:
            raise EnvError(f"{name!r} has no gradients: its agents die or their choices are masked; {OTHERWISE}.")
        self._kernels: dict[str, GradientKernel] = {}
        self._step: KernelStep | None = None
        self._state: Tensor | None = None
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
            raise EnvError(f"{self.env.scenario!r} has no gradients: its steps draw random numbers, and its resets "
                           f"draw for the whole batch; {OTHERWISE}.")
        if found.binary not in self._kernels:
            self._kernels[found.binary] = found.kernel(self.env.num_envs, step.threads)
        self._step, self._kernel = step, self._kernels[found.binary]
        return found

    # ---- windows

    def begin(self) -> None:
        """Begins a window at the environment's present state: gradients do not reach further back."""
        step = self.env.stepper.ready()
        if step is not self._step:
            self.compilation = self._prepare()
        self._state = self._step.state.clone()

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
            rows, their_rows = torch.tensor(both, dtype=torch.long).reshape(-1, 2).T
            self._state = _Carry.apply(state, self._step.state, rows, their_rows)
        here, there = self._step.state.view(torch.int32), self.state.detach().view(torch.int32)
        if not torch.equal(here, there):
            raise EnvError("the environment was reset, restored or stepped by others since the window's last step: "
                           "call begin() first.")

    def step(self, action: dict[str, Tensor]) -> Transition:
        """One step of `env` with {group: float32 [E, A, D]}; what it gives carries gradients. See `VmasEnv.step`.

        Raises EnvError as `env.step` does, and where the environment is not where the window's last step left it.
        """
        self._check()
        step, kernel = self._step, self._kernel
        groups = list(self.env.spec.groups)
        tables = {path: table.clone() for path, table in step.tables.items()}
        actions = [action[g].float().contiguous() if g in action else None for g in groups]
        transition = self.env.step({g: a.detach() for g, a in zip(groups, actions, strict=True) if a is not None})
        now = self.env.stepper.ready() or step  # another one where resets gave what the kernel did not know
        noise = now.random.clone() if step.noise else None
        made = _Made(kernel, groups, noise, tables, transition.done, _outputs(transition), step.state.clone())
        self._state, *values = _Step.apply(made, self._state, *actions)
        return _with_outputs(transition, dict(zip(made.outputs, values, strict=True)))


def _outputs(transition: Transition) -> dict[tuple, Tensor]:
    """What a step gave, by the names that the gradient kernel knows its gradients by."""
    outputs = {("gradient", "reward", g): v for g, v in transition.reward.items()}
    outputs |= {("gradient", "observation", g): v for g, v in transition.next_observation.items()}
    outputs |= {("gradient", "after", "observation", g): v for g, v in transition.observation.items()}
    if transition.state is not None:
        outputs["gradient", "observation", STATE] = transition.next_state
        outputs["gradient", "after", "observation", STATE] = transition.state
    return outputs


def _with_outputs(transition: Transition, values: dict[tuple, Tensor]) -> Transition:
    groups = transition.reward
    return replace(
        transition,
        reward={g: values["gradient", "reward", g] for g in groups},
        next_observation={g: values["gradient", "observation", g] for g in groups},
        observation={g: values["gradient", "after", "observation", g] for g in groups},
        next_state=values.get(("gradient", "observation", STATE)),
        state=values.get(("gradient", "after", "observation", STATE)))
