"""Settings of slow scenarios, and what must hold of chained steps: files of tests share them, and two cores."""

from envs.validation.chains import TOLERANCE, chain
from envs.vmas.simulator import scenario_names

EAGER = {"debug/het_mass", "debug/waterfall", "road_traffic"}  # docs/kernels.md says why
# They draw within a step, and not the same numbers as the kernel (docs/kernels.md): verified when the kernel is built.
DRAWS = {"discovery", "football"}
STIFF = {"ball_trajectory", "buzz_wire", "debug/asym_joint", "joint_passage_size"}  # rounding alone carries them apart
# Steps of a chain, and of an episode in it; docs/kernels.md has fifty steps of every scenario in full.
LENGTH, EPISODE = 20, 8
SLOW = ("ball_passage", "buzz_wire", "football", "joint_passage_size", "multi_give_way", "passage", "sampling")
STEPS = dict.fromkeys(SLOW, 10)  # slow to step eagerly
MINUTES = {"debug/pollock", "joint_passage"}  # that building four of them takes
# Fewer agents, walls or cells; docs/scenarios.md has them in full.
SMALL = {
    "road_traffic": {"n_agents": 3},
    "debug/pollock": {"n_agents": 4, "n_lines": 4, "n_boxes": 4},
}
# Chains of fewer, too: the code of a pair of entities is the same, and half of the operations remain.
FEWER = {
    "ball_passage": {"n_passages": 9},
    "joint_passage": {"n_passages": 9},
    "passage": {"n_passages": 9},
    "discovery": {"n_agents": 3, "n_targets": 4},
    "flocking": {"n_agents": 3, "n_obstacles": 2},
    "football": {"n_blue_agents": 2, "n_red_agents": 1},
    "mpe/simple_tag": {"num_adversaries": 2, "num_landmarks": 1},
    "mpe/simple_world_comm": {"num_adversaries": 2, "num_good_agents": 1, "num_food": 1, "num_forests": 1},
    "navigation": {"n_agents": 2},
    "reverse_transport": {"n_agents": 2},
    "sampling": {"grid_spacing": 0.25},
}
NAMES = sorted(set(scenario_names()) - EAGER - MINUTES)


def check(scenario: str) -> None:
    """Kernel and simulator agree until rounding carries them apart, and no further than it carries the simulator."""
    size = {"num_envs": 8, "steps": STEPS.get(scenario, LENGTH), "max_steps": EPISODE}
    size["scenario_kwargs"] = FEWER.get(scenario, {})
    result = chain(scenario, **size, shake=scenario in STIFF)
    if (result.drifters or result.step > TOLERANCE) and scenario not in DRAWS | STIFF:
        result = chain(scenario, **size)  # the same again: does rounding alone carry the simulator as far?
    assert not result.why, result.why
    assert result.ended >= 8 and result.flips == 0 and result.chain <= TOLERANCE
    if scenario not in DRAWS:
        # Stiff joints amplify the last bits of a state within a single step, and the simulator's own as much.
        assert result.step_flips == 0 and result.step <= (5e-3 if result.shaken else TOLERANCE)
        assert result.drifters <= result.shaken + 2  # no more than rounding does by itself
