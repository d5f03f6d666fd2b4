"""Features of named layers, pictures of graphs, tables of networks, integrated gradients."""

from pathlib import Path

import networkx as nx
import pytest
import torch
from torch import nn

from marl.config import compose
from marl.core.errors import UserError
from marl.inspection import model_summary, network_graph
from marl.inspection.features import features, named
from marl.inspection.integrated_gradients import integrated_gradients, rows_of_each
from marl.launch import build
from marl.networks import CNN, GRU, LSTM, MLP, VAE
from tests.fixtures.runs import TINY


def test_features_are_what_the_layers_give():
    net, x = MLP(4, 2, hidden=[64, 64]), torch.randn(200, 4)
    with features(net, ["body.0", "head"]) as outputs:
        y = net(x)
    torch.testing.assert_close(outputs["body.0"], net.body[0](x))
    assert torch.equal(outputs["head"], y) and list(outputs) == ["body.0", "head"]
    outputs["body.0"].sum().backward()
    assert net.body[0].weight.grad is not None
    assert not any(module._forward_hooks for module in net.modules())
    assert list(named(net, ["body.*"])) == ["body.0", "body.1", "body.2", "body.3"]
    with pytest.raises(UserError, match="layers=bodi.0: no such layer; did you mean 'body.0'"):
        named(net, ["bodi.0"])


def test_a_recurrent_layers_feature_is_its_output():
    net = LSTM((6, 3), 2, hidden=5)
    with features(net, ["body"]) as outputs:
        net(torch.randn(7, 6, 3))
    assert outputs["body"].shape == (7, 6, 5)


def test_networks_are_measured_without_data_and_left_as_they_were():
    config = compose.check(compose.compose([*TINY, "network.dropout=0.1", "network.hidden=[32]"]))
    task = build.build_task(config)
    before, stream = {k: v.clone() for k, v in task.loss.state_dict().items()}, torch.get_rng_state()
    modes = [m.training for m in task.loss.modules()]
    networks = model_summary.networks(task.loss)
    assert torch.equal(stream, torch.get_rng_state()) and [m.training for m in task.loss.modules()] == modes
    assert all(torch.equal(v, task.loss.state_dict()[k]) for k, v in before.items())
    actor = networks["actors.agents.network.networks.0"]
    assert [(layer.kind, layer.shape[1:]) for layer in actor] == [
        ("Linear", (32,)), ("Tanh", (32,)), ("Dropout", (32,)), ("Linear", (4,))
    ]  # fmt: skip
    linear = actor[0]
    size = task.loss.actors["agents"].inputs.size
    assert (linear.parameters, linear.flops) == (size * 32 + 32, 2 * size * 32)
    assert "critics.agents.network" in networks


def test_a_network_with_a_memory_is_measured_and_drawn():
    net = nn.ModuleDict({"actor": GRU(5, 2, hidden=8, encoder=[4])})
    layers = model_summary.networks(net)["actor"]
    assert [layer.kind for layer in layers] == ["Linear", "Tanh", "GRUCell", "Linear"]
    drawn = network_graph.trace(net["actor"], *model_summary.example(net["actor"], 2))
    assert {"x", "memory", "encoder.0", "head"} <= set(drawn) and nx.has_path(drawn, "memory", "head")


def test_a_network_that_wants_more_than_zeros_says_so():
    class Fussy(nn.Module):
        in_shape, out_features = (3,), 2

        def forward(self, x, memory):
            return x

    assert "not measured: TypeError" in model_summary.networks(nn.ModuleDict({"net": Fussy()}))["net"]


def test_graphs_are_layers_and_what_flows_between_them(tmp_path):
    cnn = network_graph.trace(CNN((1, 8, 8), 3, channels=[4], hidden=[5]), torch.zeros(2, 1, 8, 8))
    assert list(nx.topological_sort(cnn)) == ["x", *(f"body.{i}" for i in range(6)), "head"]
    assert cnn.nodes["body.0"]["shape"] == (4, 8, 8) and cnn.nodes["head"]["label"] == "head\nLinear"
    vae = network_graph.trace(VAE(6, 6, hidden=[4], latent=2), torch.zeros(2, 6))
    last = next(node for node in vae if vae.out_degree(node) == 0)
    assert set(vae.predecessors(last)) == {"head", "encoder.2"} and vae.nodes[last]["shape"] == (10,)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    twice = network_graph.trace(Twice(), torch.zeros(2, 3))
    assert nx.is_directed_acyclic_graph(twice) and len(twice) == 4
    out = tmp_path / "graph.svg"
    network_graph.draw({"cnn": cnn, "vae": vae}, out)
    assert "<svg" in out.read_text()
    with pytest.raises(UserError, match="nowhere"):
        network_graph.draw({"cnn": cnn}, Path("nowhere/graph.png"))


def test_integrated_gradients_add_up_and_equal_the_integral():
    pytest.importorskip("captum")
    torch.manual_seed(0)
    net = MLP(3, 1, hidden=[16])
    x, baseline = torch.randn(5, 3), torch.randn(1, 3)
    shares, error = integrated_gradients(lambda v: net(v).squeeze(-1), x, baseline, steps=128)
    total = (net(x) - net(baseline)).squeeze(-1)
    torch.testing.assert_close(shares.sum(-1), total, atol=1e-4, rtol=0)
    assert error < 1e-4
    points = torch.linspace(0.0005, 0.9995, 1000).reshape(-1, 1, 1)
    between = (baseline + points * (x - baseline)).requires_grad_()
    (slope,) = torch.autograd.grad(net(between).sum(), between)
    torch.testing.assert_close(shares, (x - baseline) * slope.mean(0), atol=1e-4, rtol=0)


def test_rows_are_of_every_label_in_turn():
    labels = torch.tensor([2, 2, 0, 1, 2, 0])
    assert rows_of_each(labels, 4).tolist() == [2, 3, 0, 5]
