"""Team networks through the scripts: train, resume, evaluate, export; policies with another number of agents."""

import json

import pytest
import torch

from agents.deploy.export import export
from agents.deploy.web_weights import plain
from agents.policies.policy import Policy
from marl.config import compose
from marl.core.errors import UserError
from tests.fixtures.runs import make_run


@pytest.mark.parametrize("network", ["deep_sets", "attention", "graph"])
def test_they_train_resume_evaluate_and_export(network, tmp_path, script):
    small = {"deep_sets": "network.hidden=[8]", "attention": "network.width=8", "graph": "network.width=8"}[network]
    team = ["env.scenario_kwargs.n_agents=3", f"network={network}", small]
    run = make_run(tmp_path / "run", *team)
    script("train").train(compose.compose([f"resume={run}", "frames=120"]), run)
    assert json.loads((run / "summary.json").read_text())["frames"] == 120
    module = script("evaluate")
    same = module.evaluate(*module.parse([f"ckpt={run}"]))["groups"]["agents"]
    assert len(same["agents"]) == 3
    more = module.evaluate(*module.parse([f"ckpt={run}", "env.scenario_kwargs.n_agents=5", f"out={tmp_path}/5.json"]))
    assert len(more["groups"]["agents"]["agents"]) == 5
    rows = module.evaluate(*module.parse([f"ckpt={run}", "vary=n_agents", "values=[2,3]"]))["rows"]
    assert rows[1]["groups"]["agents"]["episode_return"] == same["episode_return"]
    policy = Policy.load(run)
    x = torch.randn(5, 3, policy.spec.groups["agents"].observation_size)
    expected = policy.act({"agents": x})["agents"]
    loaded = torch.export.load(export(policy, "torch_export", tmp_path / "export")).module()
    torch.testing.assert_close(loaded(x)[0], expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="can't run in a page"):
        plain(policy)


def test_other_numbers_of_agents_where_they_cannot_be(tmp_path, script):
    module = script("evaluate")
    apart = make_run(tmp_path / "apart", "algo.share_actor=separate", "env.scenario_kwargs.n_agents=3")
    named = make_run(tmp_path / "named", "algo.agent_ids=true", "env.scenario_kwargs.n_agents=3")
    wide = make_run(tmp_path / "wide", "env=vmas/mpe/simple_spread", "env.scenario_kwargs.n_agents=3")
    for run, sentence in (
        (apart, "makes 4 agents of agents, and the policy of .* has a network for each of its 3"),
        (named, r"knows its 3 by their ids \(algo.agent_ids=true\)"),
        (wide, "agents of agents see 18 numbers then, and the policy of .* reads 14"),
    ):
        for way in (["env.scenario_kwargs.n_agents=4"], ["vary=n_agents", "values=[4]"]):
            with pytest.raises(UserError, match=sentence):
                module.evaluate(*module.parse([f"ckpt={run}", *way]))
    local = make_run(tmp_path / "local", "env.scenario_kwargs.n_agents=3")  # its critic knows how many there are
    played = module.evaluate(*module.parse([f"ckpt={local}", "env.scenario_kwargs.n_agents=4"]))
    assert len(played["groups"]["agents"]["agents"]) == 4
