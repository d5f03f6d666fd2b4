"""What is patched in VMAS: resets that are computed at once give what VMAS's own loops give, to the last bit."""

import pytest
import torch
from vmas.scenarios.sampling import Scenario

from envs.rng import Stream
from envs.vmas.simulator import build_simulator

SETTINGS = {"continuous_actions": True, "multi_discrete": False, "max_steps": 10}


@pytest.mark.parametrize("num_envs", [1, 67])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"grid_spacing": 0.25},
        {"grid_spacing": 0.5, "xdim": 2, "n_gaussians": 5},
        {"grid_spacing": 0.5, "n_gaussians": 2, "cov": [0.01, 0.3], "n_agents": 1},
    ],
)
def test_sampling_s_densities(num_envs, kwargs):
    stream = Stream(3)
    simulator = build_simulator("sampling", num_envs, stream, scenario_kwargs=kwargs, **SETTINGS)
    scenario = simulator.scenario
    assert scenario.nomrlize_pdf.__func__ is not Scenario.nomrlize_pdf
    for _ in range(3):
        with stream:
            simulator.reset()
        ours = scenario.max_pdf
        scenario.max_pdf = torch.zeros(num_envs)
        Scenario.nomrlize_pdf(scenario)
        assert torch.equal(ours, scenario.max_pdf) and ours.min() > 0


def test_resets_of_one_environment_are_vmas_s_own():
    stream = Stream(0)
    simulator = build_simulator("sampling", 3, stream, scenario_kwargs={"grid_spacing": 0.5}, **SETTINGS)
    before = simulator.scenario.max_pdf.clone()
    with stream:
        simulator.reset_at(1)
    after = simulator.scenario.max_pdf
    assert torch.equal(after[::2], before[::2]) and after[1] != before[1]
