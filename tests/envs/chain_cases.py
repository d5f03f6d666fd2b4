"""Settings of slow scenarios, and what must hold of chained steps: files of tests share them, and two cores."""

from envs.validation.chains import TOLERANCE, chain
from envs.vmas.simulator import scenario_names

EAGER = {"debug/het_mass", "debug/waterfall", "road_traffic"}  # docs/kernels.md says why
# They draw within a step, and not the same numbers as the kernel (docs/kernels.md): verified when the kernel is built.
DRAWS = {"discovery", "football"}
STIFF = {"ball_trajectory", "buzz_wire", "debug/asym_joint", "joint_passage_size"}  # rounding alone carries them apart
# Slow to step eagerly; docs/kernels.md has all of them over fifty steps.
STEPS = {"sampling": 10, "passage": 15, "ball_passage": 20, "multi_give_way": 20, "football": 20}
MINUTES = {"debug/pollock", "joint_passage"}  # that building four of them takes
# Fewer agents, walls or cells; docs/scenarios.md has them in full.
SMALL = {
    "road_traffic": {"n_agents": 3},
    "debug/pollock": {"n_agents": 4, "n_lines": 4, "n_boxes": 4},
    "sampling": {"grid_spacing": 0.25},
}
NAMES = sorted(set(scenario_names()) - EAGER - MINUTES)


def check(scenario: str) -> None:
    """Kernel and simulator agree until rounding carries them apart, and no further than it carries the simulator."""
    size = {"num_envs": 8, "steps": STEPS.get(scenario, 50)}
    result = chain(scenario, **size, shake=scenario in STIFF)
    if (result.drifters or result.step > TOLERANCE) and scenario not in DRAWS | STIFF:
        result = chain(scenario, **size)  # the same again: does rounding alone carry the simulator as far?
    assert not result.why, result.why
    assert result.flips == 0 and result.chain <= TOLERANCE
    if scenario not in DRAWS:
        # Stiff joints amplify the last bits of a state within a single step, and the simulator's own as much.
        assert result.step_flips == 0 and result.step <= (5e-3 if result.shaken else TOLERANCE)
        assert result.drifters <= result.shaken + 2  # no more than rounding does by itself
