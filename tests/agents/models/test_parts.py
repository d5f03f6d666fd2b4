"""Observations of several parts on their way to networks: scaling, normalisation, critics, files, names, warnings."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch

from agents.analysis.attribution import by_name
from agents.deploy.export import card, export
from agents.deploy.web_weights import plain
from agents.models.actor import Actor
from agents.models.actor_critic import build_networks
from agents.models.architecture import Architecture
from agents.models.critic import Critic
from agents.models.inputs import Inputs
from agents.models.normalization import ObservationNorm
from agents.models.parts import FlattenedPicture, check_saved, same_agents, warn_of_pictures
from agents.policies.policy import Policy
from envs.spec import ActionSpec, EnvSpec, GroupSpec, ObservationPart, describe
from marl.core.errors import UserError
from marl.networks import MLP, Multi

PARTS = (
    ObservationPart("image", (2, 4, 4), "picture", 255.0),
    ObservationPart("others", (3, 2), "set"),
    ObservationPart("position", (2,)),
)
A, F, S = 3, 32 + 6 + 2, 5
GROUP = GroupSpec("agents", ("a", "b", "c"), F, ActionSpec("discrete", nvec=(4,)), parts=PARTS)
PLAIN = GroupSpec("agents", ("a", "b", "c"), F, ActionSpec("discrete", nvec=(4,)))
SPEC = EnvSpec({"agents": GROUP}, S, 5)
MULTI = partial(Multi, hidden=[8])


def seen(*leading: int) -> torch.Tensor:
    return torch.cat([torch.randint(256, (*leading, 32)).float(), 3 + 2 * torch.randn(*leading, 8)], -1)


def test_pictures_are_divided_by_their_scale_and_the_rest_is_left_alone():
    x = seen(4, A)
    out = Inputs(F, A, parts=PARTS, ids=True)(x)
    torch.testing.assert_close(out[..., :32], x[..., :32] / 255)
    assert torch.equal(out[..., 32:F], x[..., 32:]) and torch.equal(out[0, :, F:], torch.eye(A))
    assert Inputs(F, A, parts=PARTS[1:]).plain


def test_normalisation_leaves_pictures_alone_and_takes_a_sets_things_together():
    inputs = Inputs(F, A, normalize=True, limit=0.5, parts=PARTS)
    x = seen(50, A)
    torch.testing.assert_close(inputs(x)[..., :32], x[..., :32] / 255)  # before the first update as after it, unclipped
    inputs.learn(x[:20])
    inputs.learn(x[20:])
    out = inputs(x)
    torch.testing.assert_close(out[..., :32], x[..., :32] / 255)
    things = x[..., 32:38].reshape(-1, 2)  # every thing of every agent is a sample
    expected = (things - things.mean(0)) / things.std(0, correction=0)
    torch.testing.assert_close(out[..., 32:38].reshape(-1, 2), expected.clamp(-0.5, 0.5), atol=1e-4, rtol=1e-4)
    place = x[..., 38:]
    expected = (place - place.mean((0, 1))) / place.flatten(0, 1).std(0, correction=0)
    torch.testing.assert_close(out[..., 38:], expected.clamp(-0.5, 0.5), atol=1e-4, rtol=1e-4)
    again = Inputs(F, A, normalize=True, limit=0.5, parts=PARTS)
    again.load_state_dict(inputs.state_dict())
    assert torch.equal(again(x), out)
    again.learn(x)
    inputs.learn(x)
    assert torch.equal(again(x), inputs(x))


def test_vectors_are_normalised_as_without_parts():
    parts = (ObservationPart("a", (F - 1,)), ObservationPart("b", (1,)))
    with_parts, without = Inputs(F, A, normalize=True, parts=parts), Inputs(F, A, normalize=True)
    assert type(with_parts.norm) is ObservationNorm and with_parts.state_dict().keys() == without.state_dict().keys()


@pytest.mark.parametrize("kind", ["local", "concat", "state", "agent_state"])
@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("ids", [False, True])
def test_every_critic_reads_parts(kind, share, ids):
    if ids and share == "separate":
        pytest.skip("ids are for shared networks")
    settings = Architecture(
        critic=kind, share_critic=share, normalize_observation=True, value_norm="popart", agent_ids=ids
    )
    critic = Critic(GROUP, MULTI, settings, S)
    assert critic(seen(7, A), torch.randn(7, S)).shape == (7, A)
    network = critic.network if critic.joint else critic.network.networks[0]
    own = {"image", "others", "position"} | ({"agent_ids"} if ids and kind in ("local", "agent_state") else set())
    read = {"local": own, "concat": own, "state": {"global_state"}, "agent_state": own | {"global_state"}}[kind]
    assert set(network.encoders) == read
    copies = A if kind == "concat" else 1
    assert len(network.parts) == len(read) * copies


def test_the_joint_critic_sees_each_agents_parts_through_one_encoder():
    critic, x = Critic(GROUP, MULTI, Architecture(critic="concat")), seen(2, A)
    heard = []
    critic.network.encoders["position"].register_forward_hook(lambda module, inputs, output: heard.append(inputs[0]))
    critic.network.encoders["image"].register_forward_hook(lambda module, inputs, output: heard.append(inputs[0]))
    critic(x)
    image, position = heard
    assert torch.equal(position, x[..., 38:])
    torch.testing.assert_close(image, x[..., :32].view(2, A, 2, 4, 4) / 255)


def test_a_pruned_critic_keeps_pictures_and_sets_whole():
    group = GroupSpec("agents", GROUP.agents, F, GROUP.action, in_state=(0, 1, 32, 38), parts=PARTS)
    critic = Critic(group, MULTI, Architecture(critic="agent_state", prune_state=True), S)
    assert critic.kept_features == [*range(38), 39]
    shapes = {part.name: part.shape for part in critic.network.networks[0].parts}
    assert shapes == {"global_state": (S,), "image": (2, 4, 4), "others": (3, 2), "position": (1,)}
    assert critic(seen(2, A), torch.randn(2, S)).shape == (2, A)


def test_the_order_of_parts_in_the_observation_changes_nothing():
    turned = GroupSpec("agents", GROUP.agents, F, GROUP.action, parts=PARTS[::-1])
    x, out = seen(6, A), []
    for group, rows in ((GROUP, x), (turned, torch.cat([x[..., 38:], x[..., 32:38], x[..., :32]], -1))):
        torch.manual_seed(0)
        actor, critic = Actor(group, MULTI), Critic(group, MULTI)
        out.append((actor(rows), critic(rows)))
    assert torch.equal(out[0][0], out[1][0]) and torch.equal(out[0][1], out[1][1])


def test_encoders_may_name_parts_that_some_networks_lack():
    other = GroupSpec("others", ("z",), 4, GROUP.action, parts=(ObservationPart("lidar", (4,)),))
    spec = EnvSpec({"agents": GROUP, "others": other}, S, 5)
    network = partial(Multi, encoders={"lidar": "cnn1d", "image": "mlp", "global_state": "mlp"})
    actors, critics = build_networks(Architecture(critic="state"), spec, network)
    assert type(actors["others"].network.networks[0].encoders["lidar"].network).__name__ == "CNN1d"
    assert type(critics["others"].network.encoders["global_state"].network).__name__ == "MLP"
    with pytest.raises(UserError, match=r"encoders.imag=mlp: no part has such a name; did you mean 'image'"):
        build_networks(Architecture(), spec, partial(Multi, encoders={"imag": "mlp"}))


def test_a_flattened_picture_is_told_of_in_a_sentence():
    with pytest.warns(FlattenedPicture, match=r"group agents: the picture 'image' \[2, 4, 4\] .*network=multi"):
        warn_of_pictures(SPEC, partial(MLP, hidden=[8]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_pictures(SPEC, MULTI)
        warn_of_pictures(EnvSpec({"agents": PLAIN}), MLP)


def test_runs_from_before_parts_are_told_apart():
    before = EnvSpec({"agents": PLAIN}, S, 5)
    assert same_agents(SPEC, before) and same_agents(SPEC, SPEC)
    turned = GroupSpec("agents", GROUP.agents, F, GROUP.action, parts=PARTS[::-1])
    assert not same_agents(SPEC, EnvSpec({"agents": turned}, S, 5))
    check_saved(describe(SPEC), SPEC)
    check_saved(describe(SPEC), before)
    with pytest.raises(UserError, match="group agents: saved before observations had parts, .*pixels of image"):
        check_saved(describe(before), SPEC)


ENCODERS = {"position": "mlp", "others": {"kind": "attention"}}
NODE = {"_target_": "marl.networks.Multi", "hidden": [8], "encoders": ENCODERS}


def policy(**algo) -> Policy:
    torch.manual_seed(0)
    settings = {"critic": "concat", "normalize_observation": True, **algo}
    made = Policy({"spec": describe(SPEC), "algo": settings, "network": NODE, "env": {}})
    for actor in made.actors.values():
        actor.inputs.learn(seen(9, A))
    return made


def test_a_policy_file_knows_its_parts(tmp_path):
    made, x = policy(), seen(5, A)
    made.save(tmp_path / "policy.safetensors")
    loaded = Policy.load(tmp_path / "policy.safetensors")
    assert loaded.spec.groups["agents"].parts == PARTS
    assert torch.equal(loaded.actors["agents"](x), made.actors["agents"](x))
    assert "`image` [2, 4, 4], `others` [3, 2], `position` [2]" in card(made, "safetensors")


def test_onnx_gives_the_same_actions(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -e '.[dev]'")
    made = policy()
    session = onnxruntime.InferenceSession(str(export(made, "onnx", tmp_path)))
    for batch in (200, 1):
        x = seen(batch, A)
        (action,) = session.run(None, {"agents_observation": x.numpy()})
        assert np.array_equal(action, made.act({"agents": x})["agents"].numpy())


def test_a_page_refuses_in_a_sentence():
    with pytest.raises(UserError, match="pictures can't be scaled in a page; serve=true"):
        plain(policy())


def test_a_pictures_shares_are_one_column():
    names, table = by_name(torch.ones(2, F), GROUP)
    assert names == ["image", *(f"others[{i},{j}]" for i in range(3) for j in range(2)), "position[0]", "position[1]"]
    assert table.tolist() == [[32.0] + [1.0] * 8] * 2
    names, table = by_name(torch.ones(2, F), PLAIN)
    assert names == [str(i) for i in range(F)] and table.shape == (2, F)
