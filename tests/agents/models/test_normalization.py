"""Running statistics against numpy on all data at once: returns, PopArt's rescaling, observations, rewards, ids."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from agents.algorithms.ppo import PPO
from agents.models.actor import Actor
from agents.models.architecture import Architecture
from agents.models.critic import Critic
from agents.models.normalization import ObservationNorm, RewardNorm, RunningMoments, ValueNorm
from envs.spec import ActionSpec, GroupSpec
from marl.core.distributed import total as sum_over_ranks
from marl.core.errors import UserError
from marl.networks import MLP
from tests.fixtures.shell import ranks

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
    critic = Critic(GROUP, NETWORK, Architecture(critic=kind, share_critic=share, value_norm="popart"), S)
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
    critic = Critic(GROUP, NETWORK, Architecture(value_norm="running"))
    observation = torch.randn(6, 5, A, F)
    critic.learn_scale(rollouts()[0], torch.zeros(6, 5, A))
    values = critic(observation).detach()
    weights = copy.deepcopy(dict(critic.named_parameters()))
    _, old = critic.learn_scale(rollouts()[1], critic.denormalize(values))
    torch.testing.assert_close(old, values, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(p, weights[name]) for name, p in critic.named_parameters())
    assert {"value_norm.moments", "value_norm.weight"} <= set(critic.state_dict())


def test_popart_refuses_a_network_without_an_output_layer():
    class Odd(nn.Module):
        def __init__(self, in_shape, out_features):
            super().__init__()
            self.last = nn.Linear(in_shape, out_features)

    with pytest.raises(UserError, match="algo.value_norm=popart"):
        Critic(GROUP, Odd, Architecture(value_norm="popart"))


def test_moments_of_batches_are_those_of_all_rows():
    moments, data = RunningMoments(A), [x[: i + 1] for i, x in enumerate(rollouts(mean=1e5))]
    for x in data:
        moments.update(x)
    rows = torch.cat([x.reshape(-1, A) for x in data]).double().numpy()
    assert moments.count.item() == len(rows)
    np.testing.assert_allclose(moments.mean.numpy(), rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.var.numpy(), rows.var(0), rtol=1e-7)


RANK = """
import os, torch, torch.distributed as dist
from agents.models.normalization import RunningMoments, ValueNorm
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", f"file://{os.getcwd()}/meeting", rank=rank, world_size=2)
moments, value = RunningMoments(2), ValueNorm(0.5)
for i in range(3):
    x = torch.arange(8.0).view(4, 2) + 10 * rank + i ** 2
    moments.update(x), value.update(x)
torch.save([*moments.mean.tolist(), *moments.var.tolist(), *(x.item() for x in value.mean_std())], f"{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_learn_the_statistics_of_all_data(shell, tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    for done in shell.together(tmp_path, tmp_path / "rank.py", *ranks()):
        assert done.returncode == 0, done.stderr
    lines = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert lines[0] == lines[1]
    moments, value = RunningMoments(2), ValueNorm(0.5)
    for i in range(3):
        x = torch.cat([torch.arange(8.0).view(4, 2) + 10 * rank + i**2 for rank in (0, 1)])
        moments.update(x)
        value.update(x)
    expected = [*moments.mean.tolist(), *moments.var.tolist(), *(x.item() for x in value.mean_std())]
    assert lines[0] == pytest.approx(expected)


def test_one_process_sums_nothing():
    x = torch.ones(3)
    assert sum_over_ranks(x) is x


def test_observations_are_normalised_and_clipped():
    norm = ObservationNorm(A, limit=1.5)
    x = torch.tensor([-9.0, 1.0, 9.0])
    assert norm(x).tolist() == [-1.5, 1.0, 1.5]  # nothing seen yet: clipped only
    data = torch.cat(rollouts(2))
    norm.update(data)
    rows = data.reshape(-1, A).double().numpy()
    expected = np.clip((data.double().numpy() - rows.mean(0)) / rows.std(0), -1.5, 1.5)
    np.testing.assert_allclose(norm(data).numpy(), expected, atol=1e-3)
    copied = ObservationNorm(A, limit=1.5)
    copied.load_state_dict(norm.state_dict())
    assert torch.equal(copied(data), norm(data))


def test_rewards_are_divided_by_the_deviation_of_discounted_returns():
    g = torch.Generator().manual_seed(0)
    T, E, gamma = 7, 4, 0.9
    norm = RewardNorm(E, A, gamma, limit=2.0)
    returns, past = [], np.zeros((E, A))
    for _ in range(3):
        reward, done = 5 + 3 * torch.randn(T, E, A, generator=g), torch.rand(T, E, generator=g) < 0.3
        got = norm(reward, done)
        for t in range(T):
            past = past * gamma + reward[t].double().numpy()
            returns.append(past.copy())
            past[done[t].numpy()] = 0.0
        expected = np.clip(reward.double().numpy() / np.concatenate(returns).reshape(-1).std(), -2.0, 2.0)
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["local", "concat", "state", "agent_state"])
def test_critics_see_normalised_inputs(kind):
    torch.manual_seed(0)
    critic = Critic(GROUP, NETWORK, Architecture(critic=kind, normalize_observation=True), S)
    plain = Critic(GROUP, NETWORK, Architecture(critic=kind), S)
    plain.load_state_dict(critic.state_dict(), strict=False)
    observation, state = 3 + 2 * torch.randn(50, A, F), 7 - 4 * torch.randn(50, S)
    critic.learn_inputs(observation, state)
    rows = observation.reshape(-1, F)
    whitened = (observation - rows.mean(0)) / rows.std(0, correction=0)
    expected = plain(whitened, (state - state.mean(0)) / state.std(0, correction=0))
    torch.testing.assert_close(critic(observation, state), expected, atol=1e-5, rtol=1e-5)


def test_ids_distinguish_agents_of_a_shared_network():
    torch.manual_seed(0)
    observation, state = torch.randn(2, 1, F).expand(2, A, F), torch.randn(2, S)
    for module, arguments in [
        (Actor(GROUP, NETWORK, Architecture(agent_ids=True)), (observation,)),
        (Critic(GROUP, NETWORK, Architecture(critic="local", agent_ids=True)), (observation,)),
        (Critic(GROUP, NETWORK, Architecture(critic="agent_state", agent_ids=True), S), (observation, state)),
    ]:
        out = module(*arguments).reshape(2, A, -1)
        assert not torch.allclose(out[:, 0], out[:, 1])
        weight = module.network.networks[0].body[0].weight
        with torch.no_grad():
            weight[:, -A:] = 0.0  # deaf to the ids, it treats all identically
        out = module(*arguments).reshape(2, A, -1)
        torch.testing.assert_close(out[:, 0], out[:, 1])
    joint = Critic(GROUP, NETWORK, Architecture(agent_ids=True))
    assert joint.network.body[0].weight.shape[1] == A * F


def test_ids_without_a_shared_network_are_refused():
    with pytest.raises(UserError, match="algo.agent_ids=true"):
        PPO(agent_ids=True, share_actor="separate")
    assert PPO(agent_ids=True, share_actor="separate", critic="local")
