"""Planning: a team's actions for the next steps, found by gradient ascent on what they earn.

Usage:

    python docs/examples/gradients/plan.py
"""

import torch
from torch import Tensor

from envs.vmas.env import VmasEnv
from envs.vmas.gradients.step_function import StepFunction

STEPS, ITERATIONS = 50, 80


def earned(function: StepFunction, state: Tensor, plan: Tensor) -> Tensor:
    """[E]: the team's mean return of a plan [T, E, A, D], up to the end of each episode."""
    total, going = 0.0, torch.ones(plan.shape[1])
    for action in plan:
        state, transition = function(state, {"agents": action})
        total = total + torch.where(going > 0, transition.reward["agents"].mean(-1), 0.0)
        going = going * ~transition.done
    return total


def improve(scenario: str = "mpe/simple_spread", num_envs: int = 8) -> list[float]:
    """The mean return of the plans, one for each of several starts, iteration by iteration."""
    env = VmasEnv(scenario, num_envs=num_envs, max_steps=None)
    function = StepFunction(env)
    env.reset(seed=0)
    start, group = function.state(), env.spec.groups["agents"]
    plan = torch.zeros(STEPS, num_envs, group.n_agents, group.action.size, requires_grad=True)
    optimiser, returns = torch.optim.Adam([plan], lr=0.1), []
    for _ in range(ITERATIONS):
        total = earned(function, start, torch.tanh(plan))  # in [-1, 1], the range of actions
        returns.append(total.mean().item())
        optimiser.zero_grad()
        (-total.mean()).backward()
        optimiser.step()
    return returns


if __name__ == "__main__":
    returns = improve()
    for iteration in [*range(0, ITERATIONS, 20), ITERATIONS - 1]:
        print(f"iteration {iteration:3d}   mean return of the plans {returns[iteration]:7.2f}")
