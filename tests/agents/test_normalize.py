"""Running statistics against numpy on all data at once: returns, PopArt's rescaling."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from agents.critic import Critic
from agents.normalize import ValueNorm
from envs.base import ActionSpec, GroupSpec
from marl.errors import UserError
from marl.networks import MLP

A, F, S = 3, 4, 5
GROUP = GroupSpec("agents", ("a", "b", "c"), F, ActionSpec("discrete", nvec=(3,)))
NETWORK = partial(MLP, hidden=[8])


def rollouts(count=5, mean=300.0, std=4.0):
    g = torch.Generator().manual_seed(0)
    return [mean + 10 * i + std * torch.randn(6, 5, A, generator=g) for i in range(count)]


def test_value_norm_is_the_debiased_weighted_average_of_all_rollouts():
    norm, beta = ValueNorm(beta=0.7), 0.7
    assert [x.item() for x in norm.mean_std()] == [0.0, 1.0]
    data = rollouts()
    for x in data:
        norm.update(x)
    weights = np.array([beta ** (len(data) - 1 - i) for i in range(len(data))])
    weights /= weights.sum()
    arrays = [x.double().numpy() for x in data]
    mean = sum(w * x.mean() for w, x in zip(weights, arrays, strict=True))
    var = sum(w * ((x - mean) ** 2).mean() for w, x in zip(weights, arrays, strict=True))
    got_mean, got_std = norm.mean_std()
    assert got_mean.item() == pytest.approx(mean, rel=1e-12) and got_std.item() == pytest.approx(var**0.5, rel=1e-9)
    x = data[0]
    torch.testing.assert_close(norm.normalize(x), ((x - mean) / var**0.5).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.denormalize(norm.normalize(x)), x)


def test_a_variance_near_zero_is_floored():
    norm = ValueNorm()
    norm.update(torch.full((4,), 7.0))
    assert norm.mean_std()[1].item() == pytest.approx(0.1) and torch.isfinite(norm.normalize(torch.zeros(2))).all()


@pytest.mark.parametrize(("kind", "share"), [("concat", "shared"), ("local", "separate"), ("state", "separate")])
def test_popart_moves_the_statistics_and_no_prediction(kind, share):
    torch.manual_seed(0)
    critic = Critic(GROUP, NETWORK, kind, share, S, value_norm="popart")
    observation, state = torch.randn(6, 5, A, F), torch.randn(6, 5, S)
    for returns in rollouts(3):
        value = critic.denormalize(critic(observation, state)).detach()
        raw = critic(observation, state).detach()
        target, old = critic.learn_scale(returns, value)
        after = critic(observation, state)
        torch.testing.assert_close(critic.denormalize(after), value, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(old, after, rtol=1e-4, atol=1e-3)
        assert (after - raw).abs().max() > 0.01
        torch.testing.assert_close(critic.denormalize(target), returns)


def test_without_popart_the_network_stays_and_old_values_are_what_it_said():
    critic = Critic(GROUP, NETWORK, value_norm="running")
    observation = torch.randn(6, 5, A, F)
    critic.learn_scale(rollouts()[0], torch.zeros(6, 5, A))
    said = critic(observation).detach()
    weights = copy.deepcopy(dict(critic.named_parameters()))
    _, old = critic.learn_scale(rollouts()[1], critic.denormalize(said))
    torch.testing.assert_close(old, said, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(p, weights[name]) for name, p in critic.named_parameters())
    assert {"value_norm.moments", "value_norm.weight"} <= set(critic.state_dict())


def test_popart_refuses_a_network_without_an_output_layer():
    class Odd(nn.Module):
        def __init__(self, in_shape, out_features):
            super().__init__()
            self.last = nn.Linear(in_shape, out_features)

    with pytest.raises(UserError, match="algo.value_norm=popart"):
        Critic(GROUP, Odd, value_norm="popart")
