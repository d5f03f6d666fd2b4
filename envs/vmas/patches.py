"""Places where VMAS 1.5.2 lets environments influence each other, patched so that each decides for itself.

- `World.collides` asks the whole batch (`decide_collisions_per_environment`).

- football's scripted team picks, in every environment, among the positions sampled for the first environment
  (`torch.gather` on the wrong dimension). Here each environment picks among its own.
- joint_passage and joint_passage_size multiply [E] by [E, 1] in `done` and so ask whether the joint is at the goal in
  *all* environments. Here each environment asks for itself.

And where it takes one number for another:

- `Environment._set_action` looks for what an agent says behind `world.dim_p` = 2 numbers of its continuous action, also
  where its dynamics take three (HolonomicWithRotation) or one. Here it looks behind those (`keep_words_apart`).

And where a reset loops over small tensors in Python (`batch_resets`: the same draws, the same bits):

- sampling looks for the largest density of its Gaussians in a loop over 1,600 cells: 40,000 operations on a few numbers
  per environment, which were most of the time of a rollout.

And where it takes one device for another (`keep_devices_apart`):

- football's scripted agents keep matrices of splines by place and derivative, on whichever device asked first; here
  each device has its own. The pool beside a GPU is reset on the CPU.
"""

from __future__ import annotations

import math
import types
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vmas.simulator.core import World
from vmas.simulator.utils import LINE_MIN_DIST


def decide_collisions_per_environment(world: World) -> None:
    """Let no environment's reward depend on the others, by overriding `collides` on this one world.

    VMAS's `World.collides(a, b)` answers whether a and b can collide and are close in *any* environment of the batch.
    Inside the physics that is a shortcut, which stays, except that "close" reaches as far as forces do: contacts begin
    up to LINE_MIN_DIST before surfaces touch, so VMAS drops a corner's first contact unless another environment has a
    closer one. But scenarios
    (navigation, give_way) call it before they compare distances per environment, so that a near miss costs something
    only if another pair touches. Outside of the physics we answer as if some environment were close: the scenario's
    own per-environment comparison then decides alone. Worlds that define `collides` themselves are left as they are.
    """
    if type(world).collides is not World.collides:
        return
    physics = type(world)._apply_vectorized_enviornment_force
    inside = False

    def apply_forces(self: World) -> None:
        nonlocal inside
        inside = True
        try:
            physics(self)
        finally:
            inside = False

    def collides(self: World, a: Any, b: Any) -> bool:
        able = a is not b and a.collides(b) and b.collides(a)
        moves = a.movable or a.rotatable or b.movable or b.rotatable
        if not (able and moves and {type(a.shape), type(b.shape)} in self._collidable_pairs):
            return False
        reach = a.shape.circumscribed_radius() + b.shape.circumscribed_radius() + 2 * LINE_MIN_DIST
        return not inside or bool((torch.linalg.vector_norm(a.state.pos - b.state.pos, dim=-1) <= reach).any())

    world._apply_vectorized_enviornment_force = types.MethodType(apply_forces, world)
    world.collides = types.MethodType(collides, world)


class _Mute:
    """An agent as `Environment._set_action` sees one that says nothing."""

    silent = True

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)


def keep_words_apart(simulator: Any, choice: bool = False) -> None:
    """Read what agents say from behind all numbers that move them, by overriding `_set_action` on this one simulator.

    choice: with continuous actions, an agent that talks says one word, a whole number below `dim_c`, the last number of
    its action; it is heard as one-hot. Simulators in which no agent needs this are left as they are.
    """
    world = simulator.world
    talkers = [agent for agent in simulator.agents if world.dim_c and not agent.silent]
    if not simulator.continuous_actions or not (choice or any(a.action_size != world.dim_p for a in talkers)):
        return
    set_action = type(simulator)._set_action

    def apart(self: Any, action: Tensor, agent: Any) -> None:
        if agent.silent or not self.world.dim_c:
            return set_action(self, action, agent)
        set_action(self, action[:, : agent.action_size], _Mute(agent))
        said = action[:, agent.action_size :].to(self.device)
        said = said.clone() if self.grad_enabled else said.clone().detach()
        assert not said.isnan().any()
        if choice:
            assert not torch.any(said != said.floor()), f"the word of agent {agent.name} is no whole number"
            self._check_discrete_action(said, 0, self.world.dim_c, "communication")
            said = (said == torch.arange(self.world.dim_c, device=self.device)).float()
        elif self.clamp_action:
            said = said.clamp(0, 1)
        assert not torch.any(said > 1) and not torch.any(said < 0), "Comm actions are out of range [0,1]"
        agent.action.c = said
        if agent.c_noise > 0:
            agent.action.c = said + torch.randn(*said.shape, device=self.device, dtype=torch.float32) * agent.c_noise

    simulator._set_action = types.MethodType(apart, simulator)


def decide_scenarios_per_environment(scenario: Any) -> None:
    """Overrides the methods named above on this one scenario object; others are left as they are."""
    module = type(scenario).__module__
    if module == "vmas.scenarios.football":
        for team in ("red_controller", "blue_controller"):
            controller = getattr(scenario, team, None)
            if controller is not None:
                controller.check_better_positions = types.MethodType(_better_positions, controller)
    elif module in ("vmas.scenarios.joint_passage", "vmas.scenarios.joint_passage_size"):
        scenario.done = types.MethodType(_joint_at_goal, scenario)


def _better_positions(self: Any, agent: Any, env_index: Any = Ellipsis) -> Tensor:
    """As AgentPolicy.check_better_positions: the best of the current target and some samples, [selected, 2]."""
    ball = self.ball.state.pos[env_index]
    target = self.objectives[agent]["target_pos_rel"][env_index] + ball
    samples = torch.randn(ball.shape[0], self.nsamples, self.world.dim_p, device=self.world.device)
    samples = samples * self.sigma * (1 + 3 * (1 - self.decision_strength))
    samples[:, ::2] += ball[:, None]
    samples[:, 1::2] += agent.state.pos[env_index, None]
    tried = torch.cat([target[:, None, :], samples], dim=1)
    shape = tried.shape
    tried = self.clamp_pos(tried.view(shape[0] * shape[1], shape[2])).view(*shape)
    values = self.get_pos_value(tried, agent=agent, env_index=env_index)
    values[:, 0] += self.replan_margin + 3 * (1 - self.decision_strength)
    best = values.argmax(dim=1)
    return torch.gather(tried, 1, best[:, None, None].expand(-1, 1, shape[2])).squeeze(1)


def _joint_at_goal(self: Any) -> Tensor:
    """As Scenario.done, bool [E]: the joint's position and rotation are the goal's."""
    from vmas.scenarios import joint_passage  # get_line_angle_dist_0_180 is the same in both modules

    joint, goal = self.joint.landmark.state, self.goal.state
    near = torch.linalg.vector_norm(joint.pos - goal.pos, dim=1) <= 0.01
    turned = joint_passage.get_line_angle_dist_0_180(joint.rot, goal.rot).reshape(-1) <= 0.01
    return near & turned


def batch_resets(scenario: Any) -> None:
    """Overrides the methods named above on this one scenario object; others are left as they are."""
    if type(scenario).__module__ == "vmas.scenarios.sampling":
        scenario.nomrlize_pdf = types.MethodType(_largest_density, scenario)


def _largest_density(self: Any, env_index: int | None = None) -> None:
    """As Scenario.nomrlize_pdf: `max_pdf`, float32 [E], becomes the largest density of any cell's corner.

    The covariances are diagonal, so that a density's exponent is a sum of a term of x and one of y. Each number is
    computed by the same roundings as `MultivariateNormal.log_prob` computes it by.
    """
    if env_index is not None:
        return type(self).nomrlize_pdf(self, env_index)
    device, world = self.world.device, self.world
    scales = [gaussian._unbroadcasted_scale_tril for gaussian in self.gaussians]  # `scale_tril` would leave a tensor
    terms = []  # {x, y} -> of each Gaussian [cells, E]
    for axis, (reach, limit) in enumerate(((self.xdim, world.x_semidim), (self.ydim, world.y_semidim))):
        places = torch.arange(-reach, reach, self.grid_spacing, device=device).clamp(-limit, limit)
        terms.append(
            [
                ((places[:, None] - gaussian.loc[:, axis]) / scale[:, axis, axis]).pow(2)
                for gaussian, scale in zip(self.gaussians, scales, strict=True)
            ]
        )
    halves = [scale.diagonal(dim1=-2, dim2=-1).log().sum(-1) for scale in scales]
    constant = 2 * math.log(2 * math.pi)
    for row in range(len(terms[0][0])):  # a row of cells at a time stays in a processor's cache
        densities = [(-0.5 * (constant + (x[row] + y)) - half).exp() for x, y, half in zip(*terms, halves, strict=True)]
        self.max_pdf = torch.maximum(self.max_pdf, torch.stack(densities, -1).sum(-1).amax(0))


def keep_devices_apart(scenario: Any) -> None:
    """Has the splines of football, which are one class for all its simulators, keep matrices of each device."""
    if type(scenario).__module__ != "vmas.scenarios.football" or scenario.world.device == torch.device("cpu"):
        return
    from vmas.scenarios import football

    plain = football.Splines
    if plain.__name__ == "Splines":
        football.Splines = type("DeviceSplines", (), {"hermite": staticmethod(partial(_hermite, plain, {}))})


def _hermite(plain: type, kinds: dict[torch.device, type], start: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As football's Splines.hermite, with the matrices of where `start` lies."""
    if start.device not in kinds:
        kinds[start.device] = type("Splines", (plain,), {"U_matmul_A": {}})
    return kinds[start.device].hermite(start, *args, **kwargs)
