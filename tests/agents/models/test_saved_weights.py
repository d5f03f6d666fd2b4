"""Weights of another algorithm's run: the same policy and values, whether observations are normalised here or there."""

from functools import partial

import pytest
import torch

from agents.algorithms.ppo import PPO
from agents.algorithms.shac import SHAC
from agents.models import saved_weights
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.networks import MLP

E, A, F, S = 50, 3, 4, 5
NET = partial(MLP, hidden=[8])
LINEAR = partial(MLP, hidden=[])


def loss_of(algo, network=NET):
    low = torch.full((A, 2), -1.0)
    names = tuple(f"agent_{i}" for i in range(A))
    group = GroupSpec("agents", names, F, ActionSpec("continuous", low, -low))
    return algo.make_loss(EnvSpec({"agents": group}, S, 10), network).eval()


def seen():
    generator = torch.Generator().manual_seed(0)
    observation = 3.0 + 2.0 * torch.randn(E, A, F, generator=generator)
    return observation, torch.randn(E, S, generator=generator) - 4.0


def learnt(algo, network=NET):
    """A loss whose weights are not as initialised and whose statistics, where it has some, are of `seen`."""
    torch.manual_seed(1)
    loss = loss_of(algo, network)
    observation, state = seen()
    more = {} if isinstance(algo, SHAC) else {"alive": {}}
    loss.learn_inputs({"agents": observation}, state, **more)
    return loss


def outputs(loss):
    observation, state = seen()
    with torch.no_grad():
        return loss.actors["agents"](observation), loss.critics["agents"](observation, state)


@pytest.mark.parametrize("critic", ["local", "concat", "state", "agent_state"])
@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("network", [NET, LINEAR], ids=["mlp", "linear"])
def test_statistics_become_part_of_the_first_layer(critic, share, network):
    settings = {"critic": critic, "share_actor": share, "share_critic": share, "agent_ids": share == "shared"}
    teacher = learnt(SHAC(normalize_observation=True, **settings), network)
    saved = teacher.state_dict()
    loss = loss_of(PPO(**settings), network)
    told = loss.complete(saved)
    assert told == ["the observations' statistics are now part of the first layer: actor of agents, critic of agents"]
    loss.load_state_dict(saved)
    for ours, theirs in zip(outputs(loss), outputs(teacher), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_first_layer_by_hand():
    """One output: w = (2, -1, 0, 3), b = 0.5, over features scaled by (1, 2, 4, 8) and moved by (1, 0, -1, 2)."""
    teacher, student = (loss_of(algo, LINEAR) for algo in (SHAC(normalize_observation=True, critic="local"),
                                                           PPO(critic="local")))  # fmt: skip
    saved = teacher.state_dict()
    saved["critics.agents.inputs.norm.scale"] = torch.tensor([1.0, 2, 4, 8])
    saved["critics.agents.inputs.norm.shift"] = torch.tensor([1.0, 0, -1, 2])
    saved["critics.agents.network.networks.0.head.weight"] = torch.tensor([[2.0, -1, 0, 3]])
    saved["critics.agents.network.networks.0.head.bias"] = torch.tensor([0.5])
    student.complete(saved)
    assert saved["critics.agents.network.networks.0.head.weight"].tolist() == [[2, -2, 0, 24]]
    assert saved["critics.agents.network.networks.0.head.bias"].tolist() == [0.5 + 2 + 6]


def test_a_feature_that_never_varied_is_not_blown_up():
    """Its deviation is 0, and so its scale 1e4: a file's weight of 2 stays 2, and 5, which it always was, counts 0."""
    loss = loss_of(PPO(critic="local"), LINEAR)
    teacher = loss_of(SHAC(normalize_observation=True, critic="local"), LINEAR)
    observation = torch.tensor([5.0, 1, 2, 3]) * torch.ones(E, A, F) + torch.arange(E).view(E, 1, 1) * torch.eye(4)[1]
    teacher.learn_inputs({"agents": observation}, None)
    with torch.no_grad():
        teacher.critics["agents"].network.networks[0].head.weight.fill_(2.0)
    saved = teacher.state_dict()
    loss.complete(saved)
    loss.load_state_dict(saved)
    assert saved["critics.agents.network.networks.0.head.weight"][0, 0] == 2.0
    torch.testing.assert_close(loss.critics["agents"](observation), teacher.critics["agents"](observation))


@pytest.mark.parametrize("critic", ["concat", "agent_state"])
def test_observations_that_were_seen_as_they_are_stay_so(critic):
    student = loss_of(SHAC(normalize_observation=True, critic=critic, observation_limit=30))  # some are beyond 10
    teacher = learnt(PPO(critic=critic))
    saved = teacher.state_dict()
    told = student.complete(saved)
    assert len(told) == 1 and told[0].endswith("had them: actor of agents, critic of agents")
    student.load_state_dict(saved)
    target = student.targets["agents"].network
    observation, state = seen()
    for _ in range(2):  # as initialised, and after a window
        for ours, theirs in zip(outputs(student), outputs(teacher), strict=True):
            torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(target(observation, state), outputs(teacher)[1])
        student.learn_inputs({"agents": observation}, state)


def test_weights_of_the_same_settings_are_left_as_they_are():
    for normalize in (False, True):
        for algo in (SHAC(normalize_observation=normalize), PPO(normalize_observation=normalize)):
            loss = learnt(algo)
            saved = loss.state_dict()
            before = dict(saved)
            assert saved_weights.fit(loss, saved) == []
            assert saved == before  # the same tensors: none was replaced


def test_copies_that_nothing_here_follows_are_left_out():
    saved = learnt(SHAC()).state_dict()
    ours = loss_of(PPO())
    ours.load_state_dict({n: v for n, v in saved.items() if not n.startswith("targets.")})
    ours.complete(saved)
    assert saved.keys() == ours.state_dict().keys()
    apg = loss_of(SHAC(bootstrap=False))
    apg.complete(saved)
    assert {name.partition(".")[0] for name in saved} == {"actors"} and saved.keys() == apg.state_dict().keys()


@pytest.mark.parametrize("norm", ["running", "popart"])
@pytest.mark.parametrize("critic", ["local", "concat"])
def test_normalised_values_become_part_of_the_last_layer(norm, critic):
    teacher = learnt(PPO(critic=critic, value_norm=norm))
    returns = 40.0 + 3.0 * torch.randn(5, E, A, generator=torch.Generator().manual_seed(2))
    teacher.critics["agents"].learn_scale(returns, returns)
    saved = teacher.state_dict()
    student = loss_of(SHAC(critic=critic, normalize_observation=False))
    assert student.complete(saved) == ["the returns' statistics are now part of the last layer: critic of agents"]
    student.load_state_dict(saved)
    (_, ours), (_, theirs) = outputs(student), outputs(teacher)
    torch.testing.assert_close(ours, teacher.critics["agents"].denormalize(theirs), rtol=1e-5, atol=1e-4)
    assert norm == "popart" or 30 < ours.mean() < 50  # PopArt moved its layer the other way before


@pytest.mark.parametrize("norm", ["running", "popart"])
def test_values_that_were_not_normalised_keep_their_units(norm):
    teacher = learnt(PPO())
    saved = teacher.state_dict()
    student = loss_of(PPO(value_norm=norm))
    assert student.complete(saved) == []
    student.load_state_dict(saved)
    (_, ours), (_, theirs) = outputs(student), outputs(teacher)
    critic = student.critics["agents"]
    assert torch.equal(critic.denormalize(ours), theirs)
    returns = 40.0 + 3.0 * torch.randn(5, E, A, generator=torch.Generator().manual_seed(2))
    critic.learn_scale(returns, returns)  # the next rollout hardly moves them
    torch.testing.assert_close(critic.denormalize(outputs(student)[1]), theirs, rtol=0.02, atol=1e-3)
