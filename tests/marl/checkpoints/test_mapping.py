"""Weights of one task for another: groups under other names, features in other places, by hand."""

from functools import partial

import pytest
import torch

from agents.algorithms.ppo import PPO
from agents.tasks.on_policy import OnPolicy
from envs.vmas.env import VmasEnv
from marl.checkpoints import checkpoint_file, mapping, transfer
from marl.checkpoints.mapping import GroupMap, Side
from marl.core.errors import UserError
from marl.engine.trainer import Trainer
from marl.launch import build
from marl.networks import MLP
from marl.networks.recurrent import GRU
from marl.networks.team import Attention
from tests.fixtures.runs import make_run

OLD = Side(4, 2, {"position": range(0, 2), "goal": range(2, 4)})
NEW = Side(5, 2, {"velocity": range(0, 2), "position": range(2, 4), "far": range(4, 5)})
LAYER = "actors.{}.network.networks.0.body.0.weight"


def read(node: dict) -> GroupMap:
    return mapping.read({"agents": node}, {"agents": NEW}, {"adversary": OLD})[0]


def test_features_go_by_numbers_or_by_the_names_of_parts():
    one = read({"from": "adversary", "features": {"position": "position", 4: 3, "0": "2"}})
    assert one.columns == {2: 0, 3: 1, 4: 3, 0: 2} and one.rest == "zero"
    assert one.told() == (
        "agents: its features 0 from 2, 2-3 from 0-1, 4 from 3 of adversary; 1 begin at zero"
    )  # fmt: skip
    one = read({"from": "adversary", "features": {"2-3": "goal"}, "rest": "initial"})
    assert one.columns == {2: 2, 3: 3}
    assert one.told() == (
        "agents: its features 2-3 from 2-3 of adversary; 0-1, 4 keep their initial weights; 0-1 of adversary not taken"
    )
    assert read("adversary").columns is None


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (3, "init_map.agents=3: must be a group of the saved run"),
        ({"form": "adversary"}, "must be a group"),
        ({"from": "adversary", "feature": {}}, "unknown key 'init_map.agents.feature'; did you mean 'features'"),
        ({"from": "adversry"}, "init_map.agents.from=adversry: the saved run has no such group; did you mean 'adv"),
        ({"from": "adversary", "rest": "one"}, "init_map.agents.rest=one: must be 'zero' or 'initial'"),
        ({"from": "adversary", "features": {"0-1": "1"}}, "features.0-1=1: 2 features cannot be 1"),
        ({"from": "adversary", "features": {"0-5": "0-3"}}, "0-5 must lie within 0-4, the task's features"),
        ({"from": "adversary", "features": {"0": "4"}}, "4 must lie within 0-3, the saved features"),
        ({"from": "adversary", "features": {"0-1": "0-1", "velocity": "2-3"}}, "feature 0 is there twice"),
        ({"from": "adversary", "features": {"goal": "goal"}}, "'goal' must be first-last or a part of the task's obs"),
        ({"from": "adversary", "features": []}, "must be a mapping such as"),
    ],
)
def test_what_is_refused(node, message):
    with pytest.raises(UserError, match=message) as refused:
        read(node)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="init_map.agent: no group learns under that name; did you mean 'agents'"):
        mapping.read({"agent": "adversary"}, {"agents": NEW}, {"adversary": OLD})


def moved(old: torch.Tensor, start: torch.Tensor, one: GroupMap, kind: str = "actors") -> torch.Tensor:
    name = f"{kind}.{{}}.network.networks.0.body.0.weight"
    weights = {name.format("agents"): start, f"{kind}.agents.network.networks.0.head.weight": torch.zeros(2, 2)}
    result = mapping.mapped({name.format("adversary"): old}, weights, [one])
    return result.get(name.format("agents"))


def test_columns_of_the_first_layer_by_hand():
    one = read({"from": "adversary", "features": {"0-1": "2-3", "4": "0"}})
    old = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    start = torch.full((2, 5), 9.0)
    assert moved(old, start, one).tolist() == [[3, 4, 0, 0, 1], [7, 8, 0, 0, 5]]
    kept = read({"from": "adversary", "features": {"0-1": "2-3", "4": "0"}, "rest": "initial"})
    assert moved(old, start, kept).tolist() == [[3, 4, 9, 9, 1], [7, 8, 9, 9, 5]]
    assert start.tolist() == [[9.0] * 5] * 2
    ids = moved(torch.tensor([[1.0, 2, 3, 4, 10, 20]]), torch.full((1, 7), 9.0), one)  # two agents' ids come last
    assert ids.tolist() == [[3, 4, 0, 0, 1, 10, 20]]
    both = moved(torch.arange(1.0, 9).view(1, 8), torch.full((1, 10), 9.0), one, "critics")  # all observations
    assert both.tolist() == [[3, 4, 0, 0, 1, 7, 8, 0, 0, 5]]
    assert moved(torch.ones(1, 11), torch.ones(1, 13), one, "critics") is None  # a global state is among them


def test_statistics_of_the_inputs_by_hand():
    one = read({"from": "adversary", "features": {"0-1": "2-3"}})
    old = {"count": torch.tensor(8.0), "mean": torch.arange(4.0), "m2": torch.arange(4.0) * 8}
    weights = {f"actors.agents.inputs.norm.{k}": torch.zeros(v.shape and (5,)) for k, v in old.items()}
    saved = {f"actors.adversary.inputs.norm.{k}": v for k, v in old.items()}
    result = {k.rpartition(".")[2]: v.tolist() for k, v in mapping.mapped(saved, weights, [one]).items()}
    assert result == {"count": 8.0, "mean": [2, 3, 0, 0, 0], "m2": [16, 24, 8, 8, 8]}  # others: variance 1


def task(wide: bool = False, network=MLP, scenario="tests.fixtures.approach.Approach", **algo) -> OnPolicy:
    size = {MLP: {"hidden": [8]}, GRU: {"hidden": 8}, Attention: {"width": 8}}[network]
    body = partial(network, **size)
    kwargs = {"wide": wide, "n_agents": 2} if "approach" in scenario else {}
    env = partial(VmasEnv, scenario=scenario, num_envs=4, max_steps=6, fast="off", scenario_kwargs=kwargs)
    return OnPolicy(env, PPO(rollout_steps=5, minibatch_size=20, **algo), body, frames=20, eval_episodes=2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")

    def make(name, **settings):
        if not (folder / name).exists():
            Trainer(progress="off").fit(task(**settings), folder / name)
        return folder / name / "checkpoints" / "last.pt"

    return make


@pytest.mark.parametrize("network", [MLP, GRU, Attention], ids=["mlp", "gru", "attention"])
def test_a_policy_goes_on_with_a_feature_more_that_it_does_not_see_yet(network, saved):
    path = saved(network.__name__, network=network)
    old, new = task(network=network), task(wide=True, network=network)
    transfer.load_weights(old, path)
    node = {"agents": {"from": "agents", "features": {"0-4": "0-4"}}}
    lines = transfer.load_mapped(new, path, node)
    assert lines[:2] == ["agents begins as agents", "agents: its features 0-4 from 0-4 of agents; 5 begin at zero"]
    seen = torch.randn(3, 2, 5)
    more = torch.cat([seen, torch.randn(3, 2, 1)], -1)
    for kind in ("actors", "critics"):
        a, b = (getattr(each.loss, kind)["agents"] for each in (old, new))
        if a.memory_shape:
            outputs = [m.unroll(*x, torch.zeros(3, *m.memory_shape))[0]
                       for m, x in ((a, given(kind, seen)), (b, given(kind, more)))]  # fmt: skip
        else:
            outputs = [a(seen), b(more)]
        torch.testing.assert_close(*outputs)


def given(kind: str, x: torch.Tensor) -> tuple:
    return (x[None],) if kind == "actors" else (x[None], None)


def test_a_group_begins_as_another_of_another_scenario(saved):
    path = saved("tag", scenario="mpe/simple_tag", critic="local")
    old = task(scenario="mpe/simple_tag", critic="local")
    transfer.load_weights(old, path)
    hunters, prey = (old.spec.groups[name].observation_size for name in ("adversary", "agent"))
    assert hunters == prey + 2  # it sees the prey's velocity beside
    node = {"agent": {"from": "adversary", "features": {f"0-{prey - 1}": f"0-{prey - 1}"}}}
    new = task(scenario="mpe/simple_tag", critic="local")
    before = {name: value.clone() for name, value in new.loss.state_dict().items()}
    lines = transfer.load_mapped(new, path, node)
    assert f"{hunters - 2}-{hunters - 1} of adversary not taken" in lines[1] and lines[2] == "groups not taken: agent"
    after, taken = new.loss.state_dict(), old.loss.state_dict()
    assert torch.equal(after[LAYER.format("agent")], taken[LAYER.format("adversary")][:, :prey])
    assert torch.equal(after[LAYER.format("adversary")], before[LAYER.format("adversary")])
    with pytest.raises(UserError, match="init_map.agent: actors.agent.*is .* there, and all weights .*strict=false"):
        transfer.load_mapped(task(scenario="mpe/simple_tag", critic="local"), path, {"agent": "adversary"})
    lines = transfer.load_mapped(new, path, {"agent": "adversary"}, strict=False)
    assert any(line.startswith("mismatched") and "body.0.weight" in line for line in lines)


def test_from_a_command_line_and_only_as_the_run_begins(tmp_path, capsys):
    node = "init_map.agents={from: agents, features: {0-3: 0-3}}"
    first = make_run(tmp_path / "first")
    second = make_run(tmp_path / "second", f"init_from={first}", node)
    assert "agents: its features 0-3 from 0-3 of agents; 4-15 begin at zero" in capsys.readouterr().out
    _, task = build.rebuild(second)  # its own weights, as they are
    saved = checkpoint_file.load_weights(second / "checkpoints" / "last.pt")
    assert all(torch.equal(value, saved[name]) for name, value in task.loss.state_dict().items())


def test_weights_alone_tell_the_widths_too(saved):
    path = saved("MLP", network=MLP).with_suffix(".safetensors")
    new = task(wide=True, critic="local")
    lines = transfer.load_mapped(new, path, {"agents": {"from": "agents", "features": {"0-4": "0-4"}}}, strict=False)
    assert "agents: its features 0-4 from 0-4 of agents; 5 begin at zero" in lines
