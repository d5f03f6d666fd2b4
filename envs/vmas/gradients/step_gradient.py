"""One step in torch's autograd: its values were made by the step's kernel, its gradients are the gradient kernel's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from envs.base import STATE, EnvError, Transition
from envs.kernel.backends.gradient_runtime import GradientKernel
from envs.kernel.ir.gradient import TABLE
from envs.vmas.env import VmasEnv

OTHERWISE = "algorithms that need no gradients of the simulator, such as mappo, take it as it is"

AGAIN = (
    "the steps of this window have been walked back already: sum what you differentiate and call backward() once, "
    "then begin() before the next steps (backward(retain_graph=True) keeps a window for another one)."
)


def check_differentiable(env: VmasEnv) -> None:
    """Raises EnvError, in one sentence, for an environment whose steps can have no gradients."""
    name = env.scenario
    if env.stepper is None or env.path == "eager":
        raise EnvError(f"{name!r} has no gradients: it has no kernel, and {env.why_eager}; {OTHERWISE}.")
    choices = [group for group, spec in env.spec.groups.items() if spec.action.kind != "continuous"]
    if choices:
        raise EnvError(
            f"{name!r} has no gradients: the actions of {choices[0]!r} are choices, which have none "
            f"(env.continuous_actions=true); {OTHERWISE}."
        )
    if env.world.agent_masks is not None:
        raise EnvError(f"{name!r} has no gradients: its agents die or their choices are masked; {OTHERWISE}.")


@dataclass
class Made:
    """One step that was made: what its gradients need beside the state and the actions, and what it gave."""

    kernel: GradientKernel
    groups: list[str]
    noise: Tensor | None
    tables: dict[str, Tensor]  # of before the step
    over: Tensor  # bool [E]
    outputs: dict[tuple, Tensor]  # name of its gradient -> what the step gave
    after: Tensor  # the state after it
    tables_after: dict[str, Tensor] = field(default_factory=dict)  # of floats, which carry gradients from step to step


class StepGradient(torch.autograd.Function):
    """(state, tables, actions) -> (state, tables, outputs): values of a step already made, gradients by its kernel."""

    @staticmethod
    def forward(ctx: Any, made: Made, state: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.made = replace(made, outputs={}, after=torch.empty(0), tables_after={})  # none is needed again
        ctx.names, ctx.moving = list(made.outputs), list(made.tables_after)
        ctx.save_for_backward(state, *given[len(ctx.moving) :])
        return made.after, *made.tables_after.values(), *made.outputs.values()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, after: Tensor | None, *coming: Tensor | None) -> tuple[Tensor | None, ...]:
        made, moving = ctx.made, ctx.moving
        try:
            state, *actions = ctx.saved_tensors
        except RuntimeError as error:
            raise EnvError(AGAIN) from error
        gradient = torch.zeros_like(state) if after is None else after.float().contiguous().clone()
        given = {("state",): state, ("gradient", "state"): gradient, ("noise",): made.noise, ("over",): made.over}
        given |= {("action", g): a for g, a in zip(made.groups, actions, strict=True)}
        outputs = coming[len(moving) :]
        given |= {n: None if g is None else g.contiguous() for n, g in zip(ctx.names, outputs, strict=True)}
        given |= {("table", path): table.clone() for path, table in made.tables.items()}
        kept = ~made.over.unsqueeze(1)  # what a restarted environment holds is none of what it held
        tables = [
            torch.zeros_like(made.tables[p]) if g is None else torch.where(kept, g, 0.0)
            for p, g in zip(moving, coming, strict=False)
        ]
        given |= {("table", TABLE + p): table for p, table in zip(moving, tables, strict=True)}
        of_actions = made.kernel(given)
        return None, gradient, *tables, *(of_actions[g].view_as(a) for g, a in zip(made.groups, actions, strict=True))


def outputs_of(transition: Transition) -> dict[tuple, Tensor]:
    """What a step gave, by the names that the gradient kernel knows its gradients by."""
    outputs = {("gradient", "reward", g): v for g, v in transition.reward.items()}
    outputs |= {("gradient", "observation", g): v for g, v in transition.next_observation.items()}
    outputs |= {("gradient", "after", "observation", g): v for g, v in transition.observation.items()}
    outputs |= {
        ("gradient", "observation", STATE): transition.next_state,
        ("gradient", "after", "observation", STATE): transition.state,
    }
    return {name: v for name, v in outputs.items() if v is not None}


def with_outputs(transition: Transition, values: dict[tuple, Tensor]) -> Transition:
    """The step with other tensors of the same names."""
    groups = transition.reward
    return replace(
        transition,
        reward={g: values["gradient", "reward", g] for g in groups},
        next_observation={g: values["gradient", "observation", g] for g in groups},
        observation={
            g: values.get(("gradient", "after", "observation", g), values["gradient", "observation", g]) for g in groups
        },
        next_state=values.get(("gradient", "observation", STATE)),
        state=values.get(("gradient", "after", "observation", STATE), values.get(("gradient", "observation", STATE))),
    )
