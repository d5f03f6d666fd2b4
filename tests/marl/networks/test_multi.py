"""Networks that read several parts: who reads what, by hand; orders that do not matter; what is refused."""

import pytest
import torch
from torch import nn

from marl.config import compose
from marl.core.errors import UserError
from marl.networks import MLP, Multi, Part, reads_parts, with_parts
from marl.networks.multi.encoders import CNN1d

POSITION = Part("position", (2,))
LIDAR = Part("lidar", (6,))
IMAGE = Part("camera.left", (2, 4, 4), "picture")
OTHERS = Part("others", (3, 2), "set")
ALL = (POSITION, IMAGE, LIDAR, OTHERS)
FEATURES = 2 + 32 + 6 + 6


def rows(*parts: Part, values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([values[part.name] for part in parts], -1)


def values(*leading: int) -> dict[str, torch.Tensor]:
    return {part.name: torch.randn(*leading, part.size) for part in ALL}


def test_each_part_goes_to_its_encoder_by_hand():
    network = Multi(5, 1, {"b": {"kind": "mlp", "hidden": [], "out": 1}}, hidden=[], activation="relu",
                    parts=[Part("b", (3,)), Part("a", (2,))])  # fmt: skip
    with torch.no_grad():
        network.encoders["b"].network.head.weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
        network.encoders["b"].network.head.bias.fill_(-1.0)
        network.head.weight.copy_(torch.tensor([[10.0, 100.0, 1000.0]]))  # a[0], a[1], what b's encoder says
        network.head.bias.fill_(0.5)
    x = torch.tensor([[1.0, 1.0, 2.0, 4.0, 5.0], [-1.0, 0.0, 0.0, 1.0, 0.0]])
    # relu(1 + 2 + 6 - 1) = 8; relu(-1 - 1) = 0
    torch.testing.assert_close(network(x), torch.tensor([[40 + 500 + 8000 + 0.5], [10 + 0.5]]))


def test_the_order_of_the_parts_changes_nothing():
    seen, outputs = values(5, 3), []
    for order in (ALL, ALL[::-1], (OTHERS, POSITION, IMAGE, LIDAR)):
        torch.manual_seed(0)
        network = Multi(FEATURES, 4, {"lidar": "cnn1d", "position": "mlp"}, parts=order)
        outputs.append(network(rows(*order, values=seen)))
    assert outputs[0].shape == (5, 3, 4)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("kind", ["deep_sets", "attention"])
def test_a_set_may_come_in_any_order(kind):
    network = Multi(FEATURES, 4, {"others": {"kind": kind}}, parts=ALL)
    seen = values(7)
    turned = seen | {"others": seen["others"].view(7, 3, 2)[:, [2, 0, 1]].flatten(1)}
    torch.testing.assert_close(network(rows(*ALL, values=seen)), network(rows(*ALL, values=turned)))
    changed = seen | {"others": seen["others"].flip(-1)}
    assert not torch.allclose(network(rows(*ALL, values=seen)), network(rows(*ALL, values=changed)), atol=1e-4)


def test_a_ring_has_no_seam():
    """Two layers of ones add up all places within 2 of each, across the end: by hand."""
    ring = CNN1d(6, 6, channels=[1, 1], kernel_size=3)
    ring.act = nn.Identity()
    with torch.no_grad():
        for layer in ring.body:
            layer.weight.fill_(1.0)
            layer.bias.zero_()
        ring.head.weight.copy_(torch.eye(6))
        ring.head.bias.zero_()
    one = torch.tensor([1.0, 0, 0, 0, 0, 0])
    assert ring(one).tolist() == [3.0, 2.0, 1.0, 0.0, 1.0, 2.0]
    assert ring(one.roll(2).expand(4, 1, 6)).shape == (4, 1, 6)
    assert ring(one.roll(2)).tolist() == [1.0, 2.0, 3.0, 2.0, 1.0, 0.0]
    assert CNN1d((6, 2), 5)(torch.zeros(3, 6, 2)).shape == (3, 5)


def test_parts_of_one_name_share_an_encoder_and_are_joined_in_their_order():
    agent = (Part("x", (1,)), Part("y", (2,)))
    network = Multi(6, 1, {"y": {"kind": "mlp", "hidden": [], "out": 1}}, hidden=[], activation="relu", parts=agent * 2)
    assert [tuple(p.shape) for p in network.encoders.parameters()] == [(1, 2), (1,)]
    with torch.no_grad():
        network.encoders["y"].network.head.weight.copy_(torch.tensor([[1.0, 1.0]]))
        network.encoders["y"].network.head.bias.zero_()
        network.head.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))  # x of both, then y of both
        network.head.bias.zero_()
    assert network(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])).item() == 1 + 40 + 500 + 11000


def test_without_parts_it_is_an_mlp():
    torch.manual_seed(0)
    network = Multi(5, 3, hidden=[8], init="orthogonal", last_gain=0.01)
    torch.manual_seed(0)
    mlp = MLP(5, 3, [8], init="orthogonal", last_gain=0.01)
    x = torch.randn(4, 2, 5)
    assert torch.equal(network(x), mlp(x)) and not reads_parts(MLP) and with_parts(MLP, [POSITION]) is MLP


def test_whole_pictures_and_sets_have_their_encoders():
    assert Multi((2, 4, 4), 3)(torch.zeros(6, 2, 4, 4)).shape == (6, 3)
    assert type(Multi((2, 4, 4), 3).encoders["observation"].network).__name__ == "CNN"
    assert type(Multi((3, 2), 3).encoders["observation"].network).__name__ == "DeepSets"


def test_a_name_beats_patterns_and_a_longer_pattern_a_shorter_one():
    kinds = {"*": "mlp", "l*": "flat", "lidar": "cnn1d", "camera*": {"channels": [3], "out": 7}}
    network = Multi(FEATURES, 1, kinds, parts=ALL)
    names = {name: type(getattr(encoder, "network", encoder)).__name__ for name, encoder in network.encoders.items()}
    assert names == {"camera_left": "CNN", "lidar": "CNN1d", "others": "MLP", "position": "MLP"}
    assert network.encoders["camera_left"].out_features == 7


def test_nested_names_are_written_as_they_are_nested():
    network = Multi(FEATURES, 1, {"camera": {"left": {"kind": "mlp", "out": 9}}}, parts=ALL)
    assert network.encoders["camera_left"].out_features == 9


def test_names_of_modules_are_free():
    parts = (Part("a.b", (1,)), Part("a_b", (1,)), Part("keys", (1,)), Part("training", (1,)))
    network = Multi(4, 1, parts=parts)
    assert list(network.encoders) == ["a_b", "a_b_", "keys_", "training_"]
    assert network(torch.zeros(2, 4)).shape == (2, 1)


def test_a_memory_is_carried_through_the_trunk():
    network = Multi(FEATURES, 4, memory="lstm", memory_units=5, hidden=[8], parts=ALL)
    assert network.memory_size == 10 and isinstance(network.head, nn.Linear)
    x, memory = rows(*ALL, values=values(6, 3)), torch.zeros(3, 10)
    start = torch.tensor([[False] * 3] * 4 + [[True] * 3] + [[False] * 3])
    out, after = network(x, memory, start)
    assert out.shape == (6, 3, 4) and after.shape == (6, 3, 10)
    again, _ = network(x[4:], memory)
    torch.testing.assert_close(out[4:], again)


@pytest.mark.parametrize(
    ("encoders", "sentence"),
    [
        ({"lidr": "cnn1d"}, r"network.encoders.lidr=cnn1d: no part has such a name; did you mean 'lidar'"),
        ({"position": "cnn"}, r"network.encoders.position=cnn: can't read position, a vector \[2\] \(allowed are"),
        ({"*": "cnn1d"}, r"network.encoders.\*=cnn1d: can't read camera.left, a picture \[2, 4, 4\]"),
        ({"camera*": {"kind": "deep_sets"}}, r"camera\*=deep_sets: can't read .* \(allowed are cnn, mlp, flat\)"),
        ({"lidar": {"kind": "mlp", "hiden": [4]}}, r"unknown key 'network.encoders.lidar.hiden'; did you"),
        ({"lidar": {"kind": "mlp", "out": 0}}, r"network.encoders.lidar.out=0: must be at least 1"),
        ({"lidar": {"kind": "cnn1d", "kernel_size": 4}}, r"network.encoders.lidar.kernel_size=4: must be odd"),
        ({"others": {"kind": "attention", "heads": 3}}, r"heads=3: must divide network.encoders.others.width=64"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_sentence(encoders, sentence):
    with pytest.raises(UserError, match=sentence):
        Multi(FEATURES, 1, encoders, parts=ALL)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"position is a vector \[2\] are 2 numbers, and the input has 3"):
        Multi(3, 1, parts=[POSITION])
    with pytest.raises(UserError, match=r"of one name must be alike, but a is a vector \[1\] and then a"):
        Multi(3, 1, parts=[Part("a", (1,)), Part("a", (2,))])


def test_names_of_other_networks_parts_are_no_mistake():
    network = Multi(2, 1, {"lidar": "cnn1d"}, parts=[POSITION], names=["lidar"])
    assert list(network.encoders) == ["position"]


def test_encoders_are_chosen_on_the_command_line():
    written = ["network=multi", "network.encoders.image=cnn", "network.encoders.lidar.kind=cnn1d"]
    config = compose.check(compose.compose(written))
    assert config["network"]["encoders"] == {"image": "cnn", "lidar": {"kind": "cnn1d"}}
    with pytest.raises(UserError, match=r"network.encoders.image=cn: must be 'flat', .*did you mean 'cnn'"):
        compose.check(compose.compose(["network=multi", "network.encoders.image=cn"]))
