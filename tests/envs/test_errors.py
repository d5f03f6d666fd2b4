"""A user's mistakes about an environment are one sentence that names the key, the value and what is allowed."""

import pytest

from envs.vmas.env import VmasEnv
from envs.vmas.simulator import find_scenario, scenario_names
from marl.core.errors import UserError

MISTAKES = [
    ({"scenario": "balanc"}, "env.scenario='balanc' .*did you mean balance"),
    ({"scenario": "simple_spred"}, "did you mean mpe/simple_spread"),
    ({"scenario": "mpe/simple_tga"}, "mpe/simple_tag"),
    ({"scenario": "qqq"}, "VMAS has balance"),
    ({"scenario": "no.such.Thing"}, "no module 'no'"),
    ({"scenario": "countdown_scenario.Countdwn"}, "did you mean 'Countdown'"),
    ({"scenario": "countdown_scenario.torch"}, "subclass of vmas.simulator.scenario.BaseScenario"),
    ({"scenario_kwargs": {"n_agent": 3}}, "env.scenario_kwargs.n_agent .*did you mean n_agents"),
    ({"scenario": "mpe/simple", "scenario_kwargs": {"x": 3}}, "takes none"),
    ({"scenario": "countdown_scenario.Scenario", "scenario_kwargs": {"shortst": 1}}, "did you mean shortest"),
    ({"scenario": "countdown_scenario.Countdown", "scenario_kwargs": {"shortest": 9}}, "must not exceed longest"),
    ({"scenario": "ball_passage", "scenario_kwargs": {"n_passages": 30}}, "n_passages.*30"),
    ({"num_envs": 0}, "env.num_envs=0 must be at least 1"),
    ({"max_steps": 0}, "env.max_steps=0 must be at least 1"),
    ({"pool_size": 0}, "env.pool_size=0 must be at least 1"),
    ({"multi_discrete": True}, "env.multi_discrete=true needs env.continuous_actions=false"),
    ({"device": "gpu"}, "env.device='gpu' is no device"),
]


@pytest.mark.parametrize("settings, words", MISTAKES, ids=[str(s) for s, _ in MISTAKES])
def test_one_sentence(settings, words, own_scenario):
    with pytest.raises(UserError, match=words) as caught:
        VmasEnv(**{"num_envs": 3, "fast": "off", **settings})
    assert "\n" not in str(caught.value)


def test_scenarios_are_found_by_all_their_names(own_scenario):
    assert len(scenario_names()) == 41
    assert find_scenario("simple_spread") is find_scenario("mpe/simple_spread")
    assert find_scenario("goal") is find_scenario("debug/goal")
    assert find_scenario("balance") is find_scenario("vmas.scenarios.balance")
    assert find_scenario("countdown_scenario.Countdown") is find_scenario("countdown_scenario.Scenario")


def test_a_fault_in_what_a_users_module_imports_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "faulty_scenario.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="needs the package 'a_module_that_is_missing', which is not installed"):
        VmasEnv("faulty_scenario.Scenario")
