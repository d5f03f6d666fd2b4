"""Every scenario of the simulator equals raw VMAS, step by step, and has a configuration."""

from functools import partial
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from envs.validation.reference import REPAIRED, compare
from envs.vmas.env import VmasEnv as AnyVmasEnv
from envs.vmas.simulator import find_scenario, keywords_of, scenario_names
from tests.envs.chain_cases import FEWER, SMALL

VmasEnv = partial(AnyVmasEnv, fast="off")  # the eager path; tests/envs/kernel holds the kernels to it

CONF = Path(__file__).parents[3] / "conf" / "env" / "vmas"
NOISY = ("debug/asym_joint", "road_traffic")  # draw noise for the observation after a restart once more


@pytest.mark.parametrize("scenario", scenario_names())
def test_thirty_steps_equal_vmas(scenario):
    """Every environment ends once at least, a time limit being twenty steps; docs/scenarios.md has more, in full."""
    difference = compare(
        scenario, num_envs=4, steps=30, repaired=scenario in REPAIRED, scenario_kwargs=(SMALL | FEWER).get(scenario, {})
    )
    assert difference.ended >= 4
    assert difference.worst == 0.0, difference
    assert difference.restart < (0.5 if scenario in NOISY else 1e-30), difference


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete"])
@pytest.mark.parametrize("scenario", ["balance", "mpe/simple_world_comm", "transport"])
def test_discrete_actions_equal_vmas(scenario, kind):
    difference = compare(
        scenario, num_envs=4, steps=30, continuous_actions=False, multi_discrete=kind == "multi_discrete"
    )
    assert difference.worst == difference.restart == 0.0, difference


def test_batch_collisions_are_the_only_difference_from_navigation():
    raw = compare("navigation", num_envs=32, steps=50)
    assert raw.reward > 0 and raw.observation == 0 and raw.done == 0
    assert compare("navigation", num_envs=32, steps=50, repaired=True).worst == 0


def test_a_comparison_leaves_vmas_random_state_alone():
    from vmas.simulator.environment import Environment

    before = Environment.vmas_random_state[0].tolist()
    compare("mpe/simple", steps=2)
    assert Environment.vmas_random_state[0].tolist() == before


@pytest.mark.parametrize("scenario", scenario_names())
def test_every_scenario_has_a_configuration_with_its_own_keywords(scenario):
    config = yaml.safe_load((CONF / f"{scenario}.yaml").read_text())
    assert config["scenario"] == scenario and config["max_steps"] >= 100
    assert config["defaults"] == ["/env/vmas/base@_here_", "_self_"]
    kwargs = config.get("scenario_kwargs") or {}
    assert set(kwargs) <= set(keywords_of(find_scenario(scenario)))


def test_every_configuration_composes_under_env():
    with initialize_config_dir(str(CONF.parents[1]), version_base="1.3"):
        for scenario in scenario_names():
            config = compose("config", overrides=[f"env=vmas/{scenario}", "env.num_envs=7"])
            assert config.env.scenario == scenario and config.env.num_envs == 7 and "vmas" not in config
            assert config.env._target_ == "envs.vmas.env.VmasEnv" and config.env.pool_every == 100


@pytest.mark.parametrize("scenario", [n for n in scenario_names() if n not in SMALL and not n.startswith("mpe/")])
def test_the_configured_keywords_build(scenario):
    kwargs = yaml.safe_load((CONF / f"{scenario}.yaml").read_text()).get("scenario_kwargs") or {}
    env = VmasEnv(scenario, num_envs=3, pool_size=4, scenario_kwargs=kwargs)
    if "n_agents" in kwargs:
        assert sum(group.n_agents for group in env.spec.groups.values()) == kwargs["n_agents"]


def test_the_table_in_the_docs_lists_every_scenario():
    table = (CONF.parents[2] / "docs" / "scenarios.md").read_text()
    assert all(f"| {name} |" in table for name in scenario_names())


def test_what_resets_draw_for_the_whole_batch_does_not_depend_on_the_seed():
    """ball_passage draws where its gaps are. Some landmarks seldom change by that, and all are drawn nevertheless."""
    first, second = (VmasEnv("ball_passage", num_envs=3, seed=seed, fast="off") for seed in (0, 5))
    assert first.shared_draws == second.shared_draws
    assert sum(path.endswith(".neighbour") for path in first.shared_draws) == 20
