"""Opponents that are not trained: random, standing still, and scripted ones, to judge and train teams against.

An opponent is built as `Opponent(env, group)` and called as `opponent(observation, generator) -> action`; a class of
your own is named by its dotted path. Shapes: E environments, A agents of the group, F features, D action dimensions.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from agents.players.perturbation import idle
from envs.base import Env
from envs.remaining_time import without_time
from envs.vmas.simulator import find_scenario
from marl.core.errors import UserError
from marl.core.kinds import function

Player = Callable[[Tensor, torch.Generator], Tensor]  # observation [E, A, F] -> action [E, A, D] of the environment


class Random:
    """Uniform actions."""

    def __init__(self, env: Env, group: str):
        self.env, self.group = env, group

    def __call__(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """Actions [E, A, D]."""
        return self.env.random_action(generator)[self.group]


class Still(Random):
    """Agents that do nothing."""

    def __call__(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """Actions [E, A, D]."""
        return idle(self.env.spec.groups[self.group].action, super().__call__(observation, generator))


class SimpleTag:
    """mpe/simple_tag with observe_pos, observe_vel and observe_same_team, as by default.

    Hunters (`adversary`) run straight to the nearest prey; prey (`agent`) runs away from every hunter, the nearer the
    faster, and keeps off the walls.
    """

    WALL = 4.0  # how steeply the walls repel: the power of the distance from the middle

    def __init__(self, env: Env, group: str):
        groups = env.spec.groups
        if set(groups) != {"adversary", "agent"} or groups[group].action.kind != "continuous":
            raise UserError("opponents: SimpleTag plays mpe/simple_tag with continuous actions only")
        self.action, self.hunts, self.group = groups[group].action, group == "adversary", groups[group]
        self.hunters, self.prey = groups["adversary"].n_agents, groups["agent"].n_agents

    def __call__(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """Actions [E, A, 2]; see `mpe/simple_tag` for the observation: others' positions relative, velocities last."""
        observation = without_time(self.group, observation)
        if self.hunts:
            others = observation[..., -4 * self.prey : -2 * self.prey]
        else:
            start = observation.shape[-1] - 2 * self.hunters - 4 * (self.prey - 1)
            others = observation[..., start : start + 2 * self.hunters]
        others = others.unflatten(-1, (-1, 2))  # [E, A, others, 2]
        distance = others.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        if self.hunts:
            nearest = distance.argmin(-2, keepdim=True).expand(*distance.shape[:-2], 1, 2)
            way = (others / distance).gather(-2, nearest).squeeze(-2)
        else:
            place = observation[..., 2:4]
            way = -(others / distance**2).sum(-2) - self.WALL * place * place.abs() ** self.WALL
        way = way / way.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        return (way * self.action.high).clamp(self.action.low, self.action.high)


class Heuristic:
    """The policy that the VMAS scenario brings itself (balance, transport, wheel, navigation, flocking, discovery).

    Raises:
        UserError: the environment is no VMAS scenario with such a policy, or its actions are discrete; acting without
            a package that the policy imports.
    """

    def __init__(self, env: Env, group: str):
        self.group = env.spec.groups[group]
        scenario, self.action = getattr(env, "scenario", None), self.group.action
        self.scenario = scenario
        module = sys.modules[find_scenario(scenario).__module__] if scenario else None
        if not hasattr(module, "HeuristicPolicy"):
            raise UserError(f"heuristic: {scenario or type(env).__name__} has no policy of its own for {group}")
        if self.action.kind != "continuous":
            raise UserError("heuristic: plays with continuous actions only (env.continuous_actions=true)")
        self.policy = module.HeuristicPolicy(continuous_action=True)

    def __call__(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """Actions [E, A, D]; what it draws comes from the process's generator, which is lent to it for the call."""
        seed = torch.randint(2**31, (), generator=generator, device=generator.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            reach, each = self.action.high, enumerate(without_time(self.group, observation).unbind(1))
            try:
                rows = [self.policy.compute_action(row, u_range=float(reach[i, 0])) for i, row in each]
            except ModuleNotFoundError as error:  # imported when it first acts: navigation's needs cvxpy
                raise UserError(f"heuristic: {self.scenario}'s own policy needs {error.name}: install it") from None
        action = torch.stack(rows, 1).float()
        return torch.nn.functional.pad(action, (0, reach.shape[-1] - action.shape[-1])).clamp(self.action.low, reach)


NAMES = {"random": Random, "still": Still, "simple_tag": SimpleTag, "heuristic": Heuristic}


def make(name: str, env: Env, group: str, key: str = "opponents"):
    """The opponent called `name` (of NAMES, or a dotted path) for a group of `env`, as the setting `key` says.

    Raises UserError otherwise.
    """
    if name not in NAMES and "." not in name:
        raise UserError(f"{key}: no opponent {name!r} (there are {', '.join(NAMES)}, and dotted paths of classes)")
    try:
        return NAMES[name](env, group) if name in NAMES else function(name, key, 2)(env, group)
    except TypeError as error:
        raise UserError(f"{key}: {name} can't be made of an environment and a group's name: {error}") from error
