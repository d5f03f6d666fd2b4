"""Actors and critics: what each kind sees, who shares weights, and what they refuse."""

from functools import partial

import pytest
import torch

from agents.algorithms.ppo import PPO
from agents.models.actor import Actor
from agents.models.architecture import Architecture
from agents.models.critic import Critic
from envs.spec import ActionSpec, EnvSpec, GroupSpec
from marl.core.errors import UserError
from marl.networks import MLP

A, D, F, S, B = 3, 2, 5, 7, 8
NETWORK = partial(MLP, hidden=[16])
BOX = ActionSpec("continuous", -torch.ones(A, D), torch.ones(A, D), (), None)
GROUP = GroupSpec("agents", ("a", "b", "c"), F, BOX)
DISCRETE = GroupSpec("agents", ("a", "b", "c"), F, ActionSpec("discrete", None, None, (4,), None))
KINDS = ["local", "concat", "state", "agent_state"]


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("group", [GROUP, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("leading", [(B,), (4, B), ()])
def test_actor_shapes(group, share, leading):
    actor = Actor(group, NETWORK, Architecture(share_actor=share))
    observation = torch.randn(*leading, A, F)
    assert actor(observation).shape == (*leading, A, actor.head.n_features)
    raw, log_prob = actor.act(observation, generator=torch.Generator().manual_seed(0))
    assert raw.shape == (*leading, A, group.action.size) and log_prob.shape == (*leading, A)
    torch.testing.assert_close(actor.evaluate(observation, raw), log_prob)


def test_deterministic_actions_are_the_mode_and_draw_nothing():
    actor = Actor(GROUP, NETWORK)
    observation = torch.randn(B, A, F)
    state = torch.get_rng_state()
    raw, log_prob = actor.act(observation, deterministic=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(raw, actor(observation)[..., :D])
    assert (log_prob >= actor.evaluate(observation, raw + 0.1)).all()


@pytest.mark.parametrize("share", ["shared", "separate"])
def test_actor_sharing(share):
    actor = Actor(GROUP, NETWORK, Architecture(share_actor=share, std="independent"))
    alone = Actor(GROUP, NETWORK, Architecture(std="independent"))
    assert count(actor) == count(alone) * (1 if share == "shared" else A)
    observation = torch.randn(B, 1, F).expand(B, A, F)  # all agents see the same
    params = actor(observation)
    assert torch.equal(params[:, 0], params[:, 1]) == (share == "shared")
    # No agent's action depends on what another sees.
    other = observation.clone()
    other[:, 1] += 1.0
    changed = (actor(other) != params).any(-1).any(0)
    assert changed.tolist() == [False, True, False]


def test_actor_refuses_a_policy_that_does_not_fit():
    with pytest.raises(UserError, match="algo.policy=categorical"):
        Actor(GROUP, NETWORK, Architecture(policy="categorical"))
    with pytest.raises(UserError, match="algo.policy=tanh_normal"):
        Actor(DISCRETE, NETWORK, Architecture(policy="tanh_normal"))


@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(B,), (4, B)])
def test_critic_shapes(kind, share, leading):
    critic = Critic(GROUP, NETWORK, Architecture(critic=kind, share_critic=share), S)
    value = critic(torch.randn(*leading, A, F), torch.randn(*leading, S))
    assert value.shape == (*leading, A) and value.dtype == torch.float32
    value.sum().backward()
    assert all(p.grad is not None for p in critic.parameters())


@pytest.mark.parametrize("share", ["shared", "separate"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_value_depends_on(kind, share):
    critic = Critic(GROUP, NETWORK, Architecture(critic=kind, share_critic=share), S)
    observation, state = torch.randn(B, A, F), torch.randn(B, S)
    value = critic(observation, state)
    other = observation.clone()
    other[:, 1] += 1.0  # only agent 1 sees something else
    by_observation = (critic(other, state) != value).any(0).tolist()
    by_state = (critic(observation, state + 1.0) != value).any(0).tolist()
    agents_row, everyone, none = [False, True, False], [True] * A, [False] * A
    expected = {
        "local": (agents_row, none),
        "concat": (everyone, none),
        "state": (none, everyone),
        "agent_state": (agents_row, everyone),
    }[kind]
    assert (by_observation, by_state) == expected


@pytest.mark.parametrize("kind", ["concat", "state"])
def test_a_shared_centralised_critic_is_one_call_with_a_value_per_agent(kind):
    calls = []

    def network(in_shape, out_features):
        calls.append((in_shape, out_features))
        return MLP(in_shape, out_features, hidden=[16])

    critic = Critic(GROUP, network, Architecture(critic=kind), S)
    assert calls == [(A * F if kind == "concat" else S, A)]
    rows = []
    critic.network.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1]))
    value = critic(torch.randn(B, A, F), torch.randn(B, S))
    assert rows == [(B,)]
    assert not torch.equal(value[:, 0], value[:, 1])  # individual rewards can be told apart


@pytest.mark.parametrize("kind", KINDS)
def test_separate_critics_share_no_weight(kind):
    critic = Critic(GROUP, NETWORK, Architecture(critic=kind, share_critic="separate"), S)
    critic(torch.randn(B, A, F), torch.randn(B, S))[:, 1].sum().backward()
    touched = [any(p.grad is not None and p.grad.any() for p in n.parameters()) for n in critic.network.networks]
    assert touched == [False, True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_that_needs_a_state_says_so(kind):
    if kind in ("local", "concat"):
        assert not Critic(GROUP, NETWORK, Architecture(critic=kind)).uses_state
        return
    assert Critic(GROUP, NETWORK, Architecture(critic=kind), S).uses_state
    with pytest.raises(UserError, match=f"algo.critic={kind} needs a global state"):
        Critic(GROUP, NETWORK, Architecture(critic=kind))


def test_critics_may_have_a_network_of_their_own():
    loss = PPO().make_loss(EnvSpec({"agents": GROUP}, None, None), NETWORK, partial(MLP, hidden=[32]))
    shapes = {p.shape[0] for p in loss.critics.parameters()}
    assert 32 in shapes and 16 not in shapes
    assert 16 in {p.shape[0] for p in loss.actors.parameters()}
