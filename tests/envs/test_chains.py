"""Up to fifty chained steps of the scenarios that have a kernel, on the kernel path and on the eager path."""

import shutil

import pytest

from envs.chains import TOLERANCE, chain
from envs.simulator import scenario_names

EAGER = {"debug/het_mass", "debug/waterfall", "road_traffic"}  # docs/kernels.md says why
# They draw within a step, and not the same numbers as the kernel (docs/kernels.md): verified when the kernel is built.
DRAWS = {"discovery", "football"}
# Slow to step eagerly; docs/kernels.md has all of them over fifty steps.
STEPS = {"sampling": 10, "passage": 15, "ball_passage": 20, "multi_give_way": 20, "football": 20}
MINUTES = {"debug/pollock", "joint_passage"}  # that building four of them takes

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler here")


@pytest.mark.parametrize("scenario", sorted(set(scenario_names()) - EAGER - MINUTES))
def test_chained_steps_agree_until_rounding_carries_them_apart(scenario):
    found = chain(scenario, num_envs=8, steps=STEPS.get(scenario, 50))
    assert not found.why
    assert found.flips == 0 and found.chain <= TOLERANCE
    if scenario not in DRAWS:
        # Stiff joints amplify the last bits of a state within a single step, and the simulator's own as much.
        assert found.step_flips == 0 and found.step <= (5e-3 if found.shaken else TOLERANCE)
        assert found.drifters <= found.shaken + 2  # no more than rounding does by itself


def test_scenarios_without_a_kernel_say_why():
    assert "continuous range" in chain("debug/het_mass", num_envs=2).why
