"""Networks: shapes, initialisation, the multi-agent wrapper, and the sentences for impossible choices."""

import platform
from functools import partial
from typing import get_type_hints

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from marl.core.errors import UserError
from marl.native import library
from marl.networks import ACTIVATIONS, CNN, GRU, LSTM, MLP, Embedding, Linear, PerAgent, fused_mlp

CASES = [
    (MLP, 5),
    (MLP, (5,)),
    (MLP, (1, 8, 8)),
    (Linear, 3),
    (Linear, (1, 8, 8)),
    (CNN, (1, 8, 8)),
    (CNN, (3, 9, 7)),
    (LSTM, (1, 8, 8)),
    (LSTM, (6, 4)),
    (GRU, (1, 8, 8)),
    (GRU, (6, 4)),
]


@pytest.mark.parametrize(("network", "in_shape"), CASES)
@pytest.mark.parametrize("leading", [(), (4,), (2, 3, 4)])
def test_leading_dimensions_are_arbitrary_and_rows_independent(network, in_shape, leading):
    torch.manual_seed(0)
    net = network(in_shape, 7)
    shape = (in_shape,) if isinstance(in_shape, int) else in_shape
    x = torch.randn(*leading, *shape)
    y = net(x)
    assert y.shape == (*leading, 7)
    rows = torch.stack([net(row) for row in x.reshape(-1, *shape)]).reshape(y.shape)
    torch.testing.assert_close(y, rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("network", [MLP, CNN, LSTM, GRU, Linear])
def test_every_parameter_gets_a_gradient(network):
    net = network((1, 8, 8), 3)
    net(torch.randn(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_mlp_computes_the_formula():
    net = MLP(4, 2, hidden=[5], activation="tanh")
    x = torch.randn(3, 4)
    first = net.body[0]
    expected = torch.tanh(x @ first.weight.T + first.bias) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(x), expected)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("hidden", [(64,), (64, 130), (130, 129, 64), (3, 1, 17)])
def test_fused_mlp_equals_its_layers(activation, hidden):
    torch.manual_seed(0)
    net = MLP(7, 5, hidden=hidden, activation=activation)
    x = torch.randn(200, 4, 7, requires_grad=True)
    assert fused_mlp.worthwhile(x.flatten(0, 1), [*net.body, net.head][::2])
    y, layers = net(x), net.head(net.body(x))
    torch.testing.assert_close(y, layers, atol=1e-6, rtol=1e-5)
    leaves, out = [x, *net.parameters()], torch.randn_like(y)
    for ours, theirs in zip(torch.autograd.grad(y, leaves, out), torch.autograd.grad(layers, leaves, out), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(net(x), y)


def test_inputs_of_another_width_are_not_read_by_the_kernel():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        MLP(4, 2)(torch.randn(3, 5))


@pytest.mark.parametrize("rows", [0, 1, 5, 8, 12, 30, 63, 65, 3000])
def test_rows_of_the_fused_mlp_do_not_depend_on_their_neighbours(rows):
    torch.manual_seed(0)
    net, x = MLP(40, 5, hidden=(64, 64)), torch.randn(3000, 40)
    with torch.no_grad():
        whole, part = net(x), net(x[:rows])
    assert torch.equal(part, whole[:rows])


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_fused_mlp_is_exact_at_the_ends_and_passes_on_what_is_not_finite(activation):
    net = MLP(1, 1, hidden=(1,), activation=activation)
    for p in net.parameters():
        torch.nn.init.ones_(p) if p.dim() > 1 else torch.nn.init.zeros_(p)
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([1e-8, -1e-8, 1e30, -1e30])]).unsqueeze(1)
    exact = getattr(torch, activation)(x.double())
    assert ((net(x) - exact).abs() <= 3e-7 * exact.abs()).all()
    assert net(torch.tensor([[float("nan")]])).isnan().all()
    endless = torch.tensor([[float("inf")], [float("-inf")]])
    torch.testing.assert_close(net(endless), getattr(torch, activation)(endless))


def test_without_a_compiler_a_warning_says_so_and_the_layers_run(monkeypatch):
    def build(source, options):
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr(library, "compile_library", build)
    net, x = MLP(7, 5, hidden=(64, 64)), torch.randn(80, 7)
    with pytest.warns(UserWarning, match="layer by layer.*no C.. compiler"):
        out = net(x)
    assert torch.equal(out, net.head(net.body(x)))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its vectors have one length")
@pytest.mark.parametrize("absent", [("-mno-avx512f",), ("-mno-avx512f", "-mno-avx")])
def test_processors_with_shorter_vectors_get_the_same(absent, monkeypatch):
    build = library.compile_library
    torch.manual_seed(0)
    net, x = MLP(19, 5, hidden=(70, 33)), torch.randn(300, 19, requires_grad=True)
    leaves = [x, *net.parameters()]
    expected = torch.autograd.grad(net(x).square().sum(), leaves)
    monkeypatch.setattr(library, "compile_library", lambda source, flags: build(source, (*flags, *absent)))
    assert fused_mlp.kernel().width() == (8 if len(absent) == 1 else 4)
    for ours, theirs in zip(torch.autograd.grad(net(x).square().sum(), leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-4)


def test_a_kernel_that_differs_from_torch_is_not_used(monkeypatch):
    wrong = library.compile_library

    def build(source, options):
        return wrong(source.replace("g * (1.0f - y * y)", "g * (1.0f - y)"), options)

    monkeypatch.setattr(library, "compile_library", build)
    with pytest.warns(UserWarning, match="differs from torch with tanh"):
        assert fused_mlp.kernel() is None


def test_fused_mlp_gives_no_gradient_to_frozen_layers_nor_to_data():
    net = MLP(7, 5, hidden=(64, 64))
    net.body[0].weight.requires_grad_(False)
    net.head.bias.requires_grad_(False)
    net(torch.randn(800, 7)).sum().backward()
    assert net.body[0].weight.grad is None and net.head.bias.grad is None
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_hooks_replaced_layers_and_autocast_take_the_plain_path():
    net, x = MLP(7, 5, hidden=(64, 64)), torch.randn(800, 7)
    shapes = []
    handle = net.body[2].register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    net(x)
    handle.remove()
    assert shapes == [(800, 64)]
    net.head = torch.nn.Sequential(torch.nn.Linear(64, 3), torch.nn.Tanh())
    assert net(x).shape == (800, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert MLP(7, 5, hidden=(64, 64))(x).dtype == torch.bfloat16


@pytest.mark.parametrize("network", [LSTM, GRU])
def test_recurrent_networks_read_an_image_row_by_row(network):
    net = network((2, 3, 4), 5)
    image = torch.randn(1, 2, 3, 4)
    rows = torch.stack([image[:, :, row].flatten(1) for row in range(3)], dim=1)  # [1, H, C·W]
    torch.testing.assert_close(net(image), net.head(net.body(rows)[0][:, -1]))


def test_initialisations_have_their_deviations():
    torch.manual_seed(0)
    deviations = {"xavier": 5 / 3 * (2 / (400 + 300)) ** 0.5, "kaiming": 5 / 3 / 400**0.5, "normal": 0.02}
    for init, deviation in deviations.items():
        layer = MLP(400, 2, hidden=[300], init=init).body[0]
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.02), init
        assert layer.bias.abs().sum() == 0
    net = MLP(6, 3, init="zeros")
    assert net(torch.randn(4, 6)).abs().sum() == 0 and net.body[0].weight.abs().sum() > 0


def test_batch_norm_takes_any_leading_dimensions():
    torch.manual_seed(0)
    net = MLP(4, 2, hidden=[8], batch_norm=True)
    x = torch.randn(30, 5, 4) * 3 + 1
    y = net(x)
    hidden = net.body[1](net.body[0](x)).flatten(0, 1)
    torch.testing.assert_close(hidden.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.var(0, correction=0), torch.ones(8), atol=1e-3, rtol=0)
    assert y.shape == (30, 5, 2)
    net.eval()
    torch.testing.assert_close(net(x)[:3], net(x[:3]))


def test_mlp_options_build_the_layers_they_name():
    net = MLP(4, 2, hidden=[8, 8, 8], activation="gelu", layer_norm=True, dropout=0.1)
    names = [type(layer).__name__ for layer in net.body]
    assert names == ["Linear", "LayerNorm", "GELU", "Dropout"] * 3
    assert len(MLP(4, 2, hidden=[]).body) == 0


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_orthogonal_initialisation_keeps_lengths(activation):
    net = MLP(16, 4, hidden=[16], activation=activation, init="orthogonal", last_gain=0.01)
    hidden = net.body[0].weight
    gain = torch.linalg.matrix_norm(hidden, 2)
    torch.testing.assert_close(hidden @ hidden.T, gain**2 * torch.eye(16), atol=1e-5, rtol=1e-5)
    expected = torch.nn.init.calculate_gain(activation) if activation in ("tanh", "leaky_relu") else 2**0.5
    assert gain.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(net.head.weight @ net.head.weight.T, 1e-4 * torch.eye(4), atol=1e-8, rtol=1e-4)
    assert net.body[0].bias.abs().sum() == 0 and net.head.bias.abs().sum() == 0


def test_last_gain_alone_touches_only_the_head():
    torch.manual_seed(0)
    plain = MLP(6, 3)
    torch.manual_seed(0)
    small = MLP(6, 3, last_gain=0.01)
    assert torch.equal(plain.body[0].weight, small.body[0].weight)
    assert torch.linalg.matrix_norm(small.head.weight, 2).item() == pytest.approx(0.01, rel=1e-4)


def test_one_factory_builds_a_classifier_and_an_actor():
    network = partial(MLP, hidden=[32], activation="relu")
    classifier = network((1, 8, 8), 10)
    actor = PerAgent(network, n_agents=3, in_shape=12, out_features=4, shared=True)
    assert type(classifier) is type(actor.networks[0]) is MLP
    assert classifier(torch.randn(5, 1, 8, 8)).shape == (5, 10)
    assert actor(torch.randn(6, 3, 12)).shape == (6, 3, 4)


@pytest.mark.parametrize("in_shape", [5, (1, 8, 8)])
def test_separate_networks_see_only_their_own_agent(in_shape):
    net = PerAgent(partial(MLP, hidden=[8]), n_agents=3, in_shape=in_shape, out_features=2, shared=False)
    shape = (in_shape,) if isinstance(in_shape, int) else in_shape
    x = torch.randn(2, 7, 3, *shape)
    y = net(x)
    assert y.shape == (2, 7, 3, 2)
    for agent in range(3):
        torch.testing.assert_close(y[:, :, agent], net.networks[agent](x[:, :, agent]))
    assert not torch.equal(net.networks[0].head.weight, net.networks[1].head.weight)


def test_shared_network_gives_equal_agents_equal_outputs():
    net = PerAgent(MLP, n_agents=4, in_shape=5, out_features=2, shared=True)
    y = net(torch.randn(3, 1, 5).expand(3, 4, 5))
    torch.testing.assert_close(y, y[:, :1].expand_as(y))
    assert len(net.networks) == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP(4, 2, activation="tahn"), r"'tahn'.*tanh, relu, gelu, silu, elu, leaky_relu, mish"),
        (lambda: MLP(4, 2, init="xavier_typo"), r"init='xavier_typo'.*default, orthogonal, xavier"),
        (lambda: MLP(4, 2, layer_norm=True, batch_norm=True), r"layer_norm=true and network\.batch_norm=true"),
        (lambda: MLP((), 2), r"in_shape=\(\)"),
        (lambda: CNN(5, 2), r"network=cnn.*\(5,\)"),
        (lambda: CNN((1, 8, 8), 2, channels=[4] * 4), r"layer 4 leaves no pixel of \(1, 8, 8\)"),
        (lambda: LSTM(5, 2)(torch.zeros(3, 5)), r"network=lstm.*\(5,\), unless"),
        (lambda: LSTM((1, 2, 3, 4), 2), r"network=lstm.*\(1, 2, 3, 4\)"),
        (lambda: GRU(5, 2, layers=2, dropout=0.1), r"network\.dropout.*must be 0 for agents"),
        (lambda: LSTM((4, 5), 2, dropout=0.1), r"network\.dropout.*must be 0"),
    ],
)
def test_impossible_choices_are_one_sentence(build, message):
    with pytest.raises(UserError, match=message):
        build()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("hidden", [64, 64], [64, 0]),
        ("activation", "relu", "rellu"),
        ("dropout", 0.1, 1.0),
        ("layer_norm", True, "yes"),
        ("last_gain", None, -1.0),
    ],
)
def test_signature_states_types_and_ranges(name, good, bad):
    adapter = TypeAdapter(get_type_hints(MLP.__init__, include_extras=True)[name])
    adapter.validate_python(good, strict=True)
    with pytest.raises(ValidationError):
        adapter.validate_python(bad, strict=True)


def layers_of(net, kind):
    return [layer for layer in net.modules() if isinstance(layer, kind)]


def test_a_number_is_a_constant_and_gain_scales_the_hidden_layers():
    net = MLP(4, 2, hidden=[5], init=0.25)
    for layer in layers_of(net, torch.nn.Linear):
        assert (layer.weight == 0.25).all() and (layer.bias == 0).all()
    net = MLP(8, 8, hidden=[8], init="orthogonal", gain=3.0)
    torch.testing.assert_close(net.body[0].weight @ net.body[0].weight.T, 9 * torch.eye(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(net.head.weight @ net.head.weight.T, torch.eye(8), atol=1e-4, rtol=0)


def test_initialisation_by_type_of_layer():
    torch.manual_seed(0)
    net = CNN((1, 8, 8), 3, channels=[4], hidden=[16], init={"conv": 0.5, "linear": "orthogonal", "head": "zeros"})
    conv, hidden, head = net.body[0], layers_of(net.body, torch.nn.Linear)[0], net.head
    assert (conv.weight == 0.5).all() and (conv.bias == 0).all() and not head.weight.any()
    torch.testing.assert_close(hidden.weight @ hidden.weight.T, 2 * torch.eye(16), atol=1e-4, rtol=0)
    table = Embedding(3, 1, {0: 50}, size=40, hidden=[4], init={"embedding": "normal"}).tables[0]
    assert table.weight.std().item() == pytest.approx(0.02, rel=0.1)
    torch.manual_seed(0)
    plain = CNN((1, 8, 8), 3, channels=[4], hidden=[16])
    torch.manual_seed(0)
    some = CNN((1, 8, 8), 3, channels=[4], hidden=[16], init={"head": 1.0})
    assert torch.equal(plain.body[0].weight, some.body[0].weight) and (some.head.weight == 1).all()
    for wrong in ({"convolution": "xavier"}, {"conv": "xaviar"}):
        with pytest.raises(UserError, match="allowed are"):
            MLP(3, 1, init=wrong)


@pytest.mark.parametrize("in_shape", [(6, 4), 4])  # a sequence, a stream
@pytest.mark.parametrize("init", ["orthogonal", {"recurrent": "orthogonal", "head": 0.5}])
def test_recurrent_layers_are_initialised_with_gain_one(in_shape, init):
    net = GRU(in_shape, 2, hidden=8, init=init)
    weights = [value for name, value in net.body.named_parameters() if "weight_hh" in name]
    assert len(weights) == 1
    torch.testing.assert_close(weights[0].T @ weights[0], torch.eye(8), atol=1e-5, rtol=0)
    assert not any(value.any() for name, value in net.body.named_parameters() if "bias" in name)
    assert isinstance(init, str) or (net.head.weight == 0.5).all()
