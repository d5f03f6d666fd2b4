"""Networks that read a team: equivariance, any number of agents, the formulas by loops, gradients, sets, refusals."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from marl.core.errors import UserError
from marl.data import ArrayData
from marl.engine.trainer import Trainer
from marl.networks import MLP, Attention, DeepSets, Graph, PerAgent, reads_team
from marl.optim.optimizer_config import OptimizerConfig
from marl.supervised.task import Supervised

NETWORKS = {
    "deep_sets": partial(DeepSets, encoder=[16, 12], hidden=[10]),
    "deep_sets_max": partial(DeepSets, pool="max"),
    "attention": partial(Attention, width=16, heads=2, layers=2),
    "graph": partial(Graph, width=16, layers=2, radius=0.8),
    "graph_all": partial(Graph, width=16, positions=None),
}


@pytest.fixture(params=NETWORKS, name="network")
def _network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]


@pytest.mark.parametrize("agents", [1, 3, 7])
def test_rows_follow_the_agents_for_any_number_of_them(network, agents):
    net, x = network(5, 4), torch.randn(2, 6, agents, 5)
    y, order = net(x), torch.randperm(agents)
    assert y.shape == (2, 6, agents, 4)
    torch.testing.assert_close(net(x[..., order, :]), y[..., order, :], atol=1e-6, rtol=1e-5)
    one_by_one = torch.stack([net(team) for team in x.flatten(0, 1)]).unflatten(0, (2, 6))
    torch.testing.assert_close(one_by_one, y, atol=1e-6, rtol=1e-5)


def test_every_agent_hears_of_the_others(network):
    net, x = network(5, 4), torch.zeros(4, 5, requires_grad=True)
    gradient = torch.autograd.grad(net(x + 0.1 * torch.randn(4, 5))[0].square().sum(), x)[0]
    assert (gradient.abs().sum(-1) > 0).all()


def test_every_parameter_gets_a_gradient_and_a_small_last_layer_is_small(network):
    net = network(5, 4)
    net(torch.randn(20, 4, 5) * 0.3).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    small = network(5, 4, init="orthogonal", last_gain=0.01)
    torch.testing.assert_close(small.head.weight @ small.head.weight.T, 1e-4 * torch.eye(4), atol=1e-8, rtol=1e-4)
    rules = network(5, 4, init={"head": "zeros"})  # of the head alone: what comes before it stays as it is made
    weights = {name: p for name, p in rules.named_parameters() if name.endswith("weight")}
    assert [name for name, p in weights.items() if p.abs().sum() == 0] == ["head.weight"]
    still = network(5, 4, init="zeros")
    assert still(torch.randn(3, 4, 5)).abs().sum() == 0
    still(torch.randn(3, 4, 5)).sum().backward()
    assert still.head.weight.grad.abs().sum() > 0  # it can leave the zeros


def test_deep_sets_by_a_loop():
    torch.manual_seed(0)
    net, x = DeepSets(3, 2, encoder=[8], hidden=[6], pool="mean"), torch.randn(4, 3)
    h = [torch.tanh(net.phi.head.weight @ one + net.phi.head.bias) for one in x]
    pool = sum(h) / 4
    expected = [net.head(torch.tanh(net.rho(torch.cat([one, pool])))) for one in h]
    torch.testing.assert_close(net(x), torch.stack(expected))


def test_attention_is_torchs_own():
    torch.manual_seed(0)
    net, x = Attention(3, 2, width=8, heads=2), torch.randn(5, 4, 3)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = net.queries[0].weight.data, net.queries[0].bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = net.joins[0].weight.data, net.joins[0].bias.data
    h = net.norms[0](net.embed(x))
    torch.testing.assert_close(net.attend(h, 0), theirs(h, h, h, need_weights=False)[0])


def test_graph_by_a_loop_over_pairs():
    torch.manual_seed(0)
    net, x = Graph(4, 2, positions=[2, 0], radius=1.0, width=8), torch.randn(6, 4)
    h, out = torch.tanh(net.embed(x)), []
    alone = 0
    for i in range(6):
        messages = []
        for j in range(6):
            away = (x[j] - x[i])[[2, 0]]
            distance = math.hypot(*away.tolist())
            if j != i and distance <= 1.0:
                edge = torch.cat([away, torch.tensor([distance])])
                messages.append(torch.tanh(net.mine[0](h[i]) + net.theirs[0](h[j]) + net.edges[0](edge)))
        alone += not messages
        heard = sum(messages) / len(messages) if messages else torch.zeros(8)
        out.append(net.head(h[i] + torch.tanh(net.updates[0](torch.cat([h[i], heard])))))
    assert 0 < alone < 6  # both cases were seen
    torch.testing.assert_close(net(x), torch.stack(out), atol=1e-5, rtol=1e-5)


def test_the_radius_cuts_and_the_place_of_all_is_not_seen():
    torch.manual_seed(0)
    net, x = Graph(4, 2, radius=1.0), torch.randn(1, 3, 4)
    x[0, :, :2] = torch.tensor([[0.0, 0.0], [0.5, 0.0], [9.0, 0.0]])
    y = net(x)
    x[0, 2, 2:] += 1  # too far away to be heard
    torch.testing.assert_close(net(x)[:, :2], y[:, :2])
    x[0, 1, 2:] += 1
    assert not torch.allclose(net(x)[:, 0], y[:, 0])
    weightless = copy.deepcopy(net)
    weightless.embed.weight.data[:, :2] = 0
    torch.testing.assert_close(weightless(x + torch.tensor([3.0, -2.0, 0, 0])), weightless(x), atol=1e-5, rtol=1e-5)


def test_a_set_is_one_answer_whatever_its_order(network):
    net, x = network((6, 5), 3), torch.randn(4, 6, 5)
    y = net(x)
    assert y.shape == (4, 3) and net(x[0]).shape == (3,)
    torch.testing.assert_close(net(x[:, torch.randperm(6)]), y, atol=1e-6, rtol=1e-5)


def points(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sets of five points in the plane; is their mean to the right of 0? No point says it alone."""
    x = torch.randn(rows, 5, 2, generator=torch.Generator().manual_seed(rows))
    return x, (x[..., 0].mean(-1) > 0).long()


def test_a_supervised_task_learns_from_sets(network, tmp_path):
    data = ArrayData("classification", 2, points(600), points(200))
    task = Supervised(data, network, nn.CrossEntropyLoss(), epochs=8, batch_size=50)
    Trainer(progress="off", evaluate_every=0).fit(task, tmp_path, optimizer=OptimizerConfig(lr=5e-3))
    assert task.evaluate()["accuracy"] > 0.9


def test_what_reads_a_team_is_known_by_its_class():
    assert reads_team(DeepSets) and reads_team(partial(partial(Graph, width=8), layers=2))
    assert reads_team(Attention(3, 2))
    assert not reads_team(MLP) and not reads_team(partial(MLP, hidden=[3])) and not reads_team(lambda i, o: MLP(i, o))
    shared = PerAgent(partial(DeepSets), 3, 5, 2, shared=True)
    assert shared(torch.randn(7, 3, 5)).shape == (7, 3, 2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PerAgent(partial(DeepSets), 3, 5, 2, shared=False), "network=DeepSets: reads the whole team, one"),
        (lambda: Attention((1, 8, 8), 2), r"network=Attention: reads a team's .* not inputs \(1, 8, 8\)"),
        (lambda: Attention(5, 2, width=10, heads=4), "network.heads=4: must divide network.width=10"),
        (lambda: Graph(5, 2, positions=[0, 5]), r"network.positions=\[0, 5\]: feature 5 does not exist, there are 5"),
        (lambda: Graph(5, 2, positions=None, radius=1.0), "network.radius=1.0: needs network.positions"),
    ],
)
def test_impossible_choices_are_rejected(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_rows_of_a_minibatch_are_no_team():
    rows = torch.randn(20, 3), torch.zeros(20, dtype=torch.long)
    data = ArrayData("classification", 2, rows, rows)
    with pytest.raises(UserError, match=r"reads sets \(members, features\), not inputs \(3,\)"):
        Supervised(data, DeepSets, nn.CrossEntropyLoss(), epochs=1, batch_size=5)
