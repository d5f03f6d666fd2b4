"""Places where VMAS 1.5.2 lets environments influence each other by an indexing slip, decided per environment.

- football's scripted team picks, in every environment, among the positions sampled for the first environment
  (`torch.gather` on the wrong dimension). Here each environment picks among its own.
- joint_passage and joint_passage_size multiply [E] by [E, 1] in `done` and so ask whether the joint is at the goal in
  *all* environments. Here each environment asks for itself.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor


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
