"""System identification: which mass has a package that was seen to be pushed? Fits it to a recorded trajectory.

Usage:

    python docs/examples/gradients/identify.py
"""

import math

import torch
from torch import Tensor

from envs.vmas.env import VmasEnv
from envs.vmas.gradients.step_function import StepFunction

MASS = "world._landmarks.1._mass"  # paths are the simulator's own attributes; `function.paths` lists them
PACKAGE, AGENT = "world._landmarks.1._state._pos", "world._agents.{}._state._pos"
STEPS, ITERATIONS = 40, 50


def roll_out(function: StepFunction, state: Tensor, actions: list[dict[str, Tensor]]) -> Tensor:
    """What agents observe, [T, E, A, F], when these actions are taken."""
    seen = []
    for action in actions:
        state, transition = function(state, action)
        seen.append(transition.observation["agents"])
    return torch.stack(seen)


def record(function: StepFunction, state: Tensor) -> list[dict[str, Tensor]]:
    """The actions of agents that all run into the package."""
    actions = []
    for _ in range(STEPS):
        places = [function.get(state, PACKAGE) - function.get(state, AGENT.format(i)) for i in range(4)]
        actions.append({"agents": torch.nn.functional.normalize(torch.stack(places, 1), dim=-1)})
        state, _ = function(state, actions[-1])
    return actions


def identify(mass: float = 20.0, guess: float = 4.0) -> list[float]:
    """The estimates, iteration by iteration, of a mass that only the recording knows."""
    env = VmasEnv("unknown_package.Scenario", num_envs=8, max_steps=None)
    function = StepFunction(env, [MASS])
    env.reset(seed=0)
    start = function.state()
    actions = record(function, function.put(start, MASS, torch.tensor([mass])))
    recorded = roll_out(function, function.put(start, MASS, torch.tensor([mass])), actions)
    log_mass = torch.tensor([math.log(guess)], requires_grad=True)
    optimiser, estimates = torch.optim.Adam([log_mass], lr=0.2, betas=(0.7, 0.95)), []
    for _ in range(ITERATIONS):
        estimates.append(log_mass.exp().item())
        error = roll_out(function, function.put(start, MASS, log_mass.exp()), actions) - recorded
        optimiser.zero_grad()
        error.square().mean().backward()
        optimiser.step()
    return estimates


if __name__ == "__main__":
    for iteration, estimate in enumerate(identify()):
        if iteration % 10 == 0 or iteration == ITERATIONS - 1:
            print(f"iteration {iteration:3d}   estimated mass {estimate:6.2f}")
