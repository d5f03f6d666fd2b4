"""The step of a VMAS scenario as a function of its state and actions, through which gradients pass."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from envs.base import STATE, EnvError, Transition
from envs.kernel.compile import compiled
from envs.kernel.compile_gradient import CompiledGradient, compiled_gradient
from envs.vmas.env import VmasEnv
from envs.vmas.gradients.step_gradient import (
    OTHERWISE,
    Made,
    StepGradient,
    check_differentiable,
    outputs_of,
    with_outputs,
)


class StepFunction:
    """(state, action) -> (state, what the step gives), with gradients of the state, parameters in it, and actions.

        function = StepFunction(env, parameters=["world._landmarks.0._state._pos"])
        env.reset(seed=0)
        state = function.put(function.state(), "world._landmarks.0._state._pos", goal)   # goal: [E, 2], requires grad
        for action in plan:
            state, transition = function(state, action)

    The environment itself stays where it is. Episodes are never restarted: where one is over (`transition.done`), the
    state runs on as if it were not, and what follows is meaningless. A state is float32 [S, padded E], the numbers that
    are carried from step to step field by field; `get` and `put` read and replace those of a tensor of the simulator's
    by its path, such as the place or the speed of a body. What a scenario keeps in tensors [E, …] can be such a
    parameter (docs/gradients.md).

    env: continuous actions, stepped by a kernel. parameters: paths that must be in the state, also where
    every episode begins with the same number, which kernels take for a constant otherwise.

    Raises:
        EnvError: the scenario has no gradients, or a parameter is none that the step reads from a tensor; says why.
    """

    def __init__(self, env: VmasEnv, parameters: Sequence[str] = ()) -> None:
        check_differentiable(env)
        self.env, stepper = env, env.stepper
        stepper.ready()
        compilation = stepper.compilation
        if set(parameters) - {path for path, _ in compilation.places.fields}:
            _check_parameters(env, parameters)
            compilation = compiled(env.world, False, stepper.drawn)  # in which nothing is constant
            if compilation.why:
                raise EnvError(f"{env.scenario!r} has no kernel without constants: {compilation.why}.")
        self._step = compilation.step(env.num_envs)
        if self._step.tables:
            raise EnvError(
                f"{env.scenario!r} keeps {next(iter(self._step.tables))} in a table, which is no part of "
                "the state here; `DifferentiableSteps` has its gradients."
            )
        self._columns = self._step.columns
        for path in parameters:
            if path not in self._columns:
                raise EnvError(f"{path!r} is no parameter of {env.scenario!r}: its step never reads it.")
        self.compilation: CompiledGradient = compiled_gradient(env.world, compilation, stepper.drawn)
        if self.compilation.why:
            raise EnvError(f"{env.scenario!r} has no gradients: {self.compilation.why}; {OTHERWISE}.")
        self._kernel = self.compilation.kernel(env.num_envs)

    def state(self) -> Tensor:
        """The environment's present state, float32 [S, padded E]."""
        tensors = self.env.world.pool.main.tensors if self.env.simulator else {}
        self._step.load_state(lambda path: tensors[path].value)
        return self._step.state.clone()

    @property
    def paths(self) -> list[str]:
        """Of the simulator's tensors whose numbers the state holds."""
        return list(self._columns)

    def _rows(self, path: str) -> Tensor:
        if path not in self._columns:
            close = difflib.get_close_matches(path, self._columns, n=3)
            raise EnvError(
                f"the state of {self.env.scenario!r} holds no {path!r}: name it in `parameters`"
                f"{', or ' + ' or '.join(close) if close else ''}."
            )
        return self._columns[path][0]

    def get(self, state: Tensor, path: str) -> Tensor:
        """float32 [E, n]: the numbers of a tensor of the simulator's that a state holds, with gradients."""
        return state[self._rows(path), : self.env.num_envs].T

    def put(self, state: Tensor, path: str, value: Tensor) -> Tensor:
        """A state with other numbers, [E, n] or [n] for all, of a tensor of the simulator's; with gradients of both.

        Raises:
            EnvError: an unknown path, or numbers of another shape.
        """
        rows, num_envs = self._rows(path), self.env.num_envs
        shape, fits = [*value.shape], (len(rows), num_envs)
        if len(shape) > 2 or any(n not in (1, full) for n, full in zip(shape[::-1], fits, strict=False)):
            raise EnvError(f"{path!r} takes numbers of shape [{num_envs}, {len(rows)}] or [{len(rows)}], not {shape}.")
        value = value.to(state.device).expand(num_envs, len(rows)).T.float()
        return state.index_copy(0, rows, F.pad(value, (0, state.shape[1] - num_envs)))

    def __call__(
        self, state: Tensor, action: dict[str, Tensor], noise: Tensor | None = None
    ) -> tuple[Tensor, Transition]:
        """One step of {group: float32 [E, A, D]}; the next state, and what the step gives.

        noise: float32 [E, N], the step's own random numbers, drawn from torch's global generator where None.
        """
        step, groups = self._step, list(self.env.spec.groups)
        actions = [action[g].float().contiguous() for g in groups]
        step.state.copy_(state.detach())
        if noise is None:
            step.draw(step.device)
        else:
            step.random.copy_(noise)
        num_envs, where = self.env.num_envs, step.device
        given = {key: torch.empty(num_envs, *step.places.inner[key], device=where) for key, _ in step.places.outputs}
        ended, over = (torch.empty(num_envs, dtype=torch.bool, device=where) for _ in range(2))
        bound = {("action", g): a.detach() for g, a in zip(groups, actions, strict=True)}
        step.bind(given | bound | {("terminated",): ended, ("truncated",): over})
        step.step()
        seen = {g: given["observation", g] for g in groups}
        transition = Transition(
            observation=dict(seen),
            next_observation=seen,
            reward={g: given["reward", g] for g in groups},
            terminated=ended,
            truncated=over,
            next_state=given.get(("observation", STATE)),
        )
        outputs = {name: v for name, v in outputs_of(transition).items() if "after" not in name}
        made = Made(
            self._kernel,
            groups,
            step.random.clone() if step.noise else None,
            {},
            torch.zeros(num_envs, dtype=torch.bool, device=where),
            outputs,
            step.state.clone(),
        )
        after, *values = StepGradient.apply(made, state, *actions)
        transition = with_outputs(transition, dict(zip(outputs, values, strict=True)))
        return after, transition


def _check_parameters(env: VmasEnv, parameters: Sequence[str]) -> None:
    """Raises EnvError for what can't be in a state: plain numbers, unknown paths, whole numbers."""
    main = env.world.pool.main
    main.refresh()
    for path in parameters:
        slot = main.tensors.get(path)
        if slot is None and path in main.host:
            raise EnvError(
                f"{path!r} is a plain number, the same in all environments, and is folded into the kernel "
                f"of {env.scenario!r}: keep it in a tensor [num_envs, 1] to have its gradient "
                "(docs/gradients.md)."
            )
        if slot is None:
            close = difflib.get_close_matches(path, [*main.tensors, *main.host], n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "it has no tensor of that name."
            raise EnvError(f"{path!r} is no parameter of {env.scenario!r}: {hint}")
        if not slot.value.is_floating_point() or env.world.pool.axes.get(path) is None:
            raise EnvError(
                f"{path!r} is no parameter of {env.scenario!r}: only floats [num_envs, …] have gradients, "
                f"and it is {slot.value.dtype} {list(slot.value.shape)}."
            )
