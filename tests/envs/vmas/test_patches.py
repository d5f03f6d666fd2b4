"""What is patched in VMAS: resets that are computed at once give what VMAS's own loops give, to the last bit."""

from types import SimpleNamespace

import pytest
import torch
from vmas.scenarios.sampling import Scenario
from vmas.simulator.utils import ScenarioUtils

from envs.rng import Stream
from envs.vmas.patches import spawning_at_once
from envs.vmas.simulator import build_simulator

SETTINGS = {"continuous_actions": True, "multi_discrete": False, "max_steps": 10}


@pytest.mark.parametrize("num_envs", [1, 67])
@pytest.mark.parametrize("kwargs", [{"grid_spacing": 0.25}, {"grid_spacing": 0.5, "xdim": 2, "n_gaussians": 5},
                                    {"grid_spacing": 0.5, "n_gaussians": 2, "cov": [0.01, 0.3], "n_agents": 1}])
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


def test_on_a_gpu_places_are_found_without_a_loop():
    world = SimpleNamespace(batch_dim=500, device=torch.device("cpu"), dim_p=2)
    theirs = ScenarioUtils.find_random_pos_for_entity
    occupied = torch.rand(500, 3, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with spawning_at_once(torch.device("cuda")):
        assert ScenarioUtils.find_random_pos_for_entity is not theirs
        torch.manual_seed(0)
        ours = ScenarioUtils.find_random_pos_for_entity(occupied, None, world, 0.5, (-1, 1), (-1, 1))
        alone = ScenarioUtils.find_random_pos_for_entity(torch.zeros(500, 0, 2), None, world, 0.5, (-1, 1), (2, 3))
        full = ScenarioUtils.find_random_pos_for_entity(torch.zeros(500, 1, 2), None, world, 9.0, (-1, 1), (-1, 1))
    assert ScenarioUtils.find_random_pos_for_entity is theirs
    assert ours.shape == (500, 1, 2) and torch.cdist(ours, occupied).min() >= 0.5 and ours.abs().max() <= 1
    expected = theirs(occupied, None, world, 0.5, (-1, 1), (-1, 1))  # the same distribution: moments of 500 draws
    assert (ours.mean(0) - expected.mean(0)).abs().max() < 0.12 and (ours.std(0) - expected.std(0)).abs().max() < 0.1
    assert 2 <= alone[..., 1].min() and alone[..., 1].max() <= 3 and alone.shape == (500, 1, 2)
    assert full.shape == (500, 1, 2)  # nowhere is far enough: the last of the draws


def test_elsewhere_vmas_places_them():
    theirs = ScenarioUtils.find_random_pos_for_entity
    with spawning_at_once(torch.device("cpu")):
        assert ScenarioUtils.find_random_pos_for_entity is theirs
