"""Advantages: by hand, against TorchRL, and at the two ways in which an episode ends."""

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.objectives.value import GAE
from torchrl.objectives.value.functional import generalized_advantage_estimate

from agents.algorithms.advantages import bootstrap, explained_variance, gae, normalize_advantage

T, E, A = 25, 6, 3


def rollout(seed=0, p=0.1):
    g = torch.Generator().manual_seed(seed)
    reward, value, next_value = torch.randn(3, T, E, A, generator=g)
    terminated = torch.rand(T, E, generator=g) < p
    truncated = (torch.rand(T, E, generator=g) < p) & ~terminated
    assert terminated.any() and truncated.any()
    return reward, value, next_value, terminated, terminated | truncated


def per_agent(x):
    """[T, E] -> TorchRL's [E, A, T, 1]."""
    return x.unsqueeze(-1).expand(T, E, A).permute(1, 2, 0).unsqueeze(-1)


def test_by_hand():
    # gamma = lambda = 0.5; step 1 terminates, step 3 is truncated, step 4 is the rollout's end.
    reward = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).view(5, 1, 1)
    value = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0]).view(5, 1, 1)
    next_value = torch.tensor([20.0, 99.0, 40.0, 60.0, 70.0]).view(5, 1, 1)
    terminated = torch.tensor([0, 1, 0, 0, 0]).bool().view(5, 1)
    done = torch.tensor([0, 1, 0, 1, 0]).bool().view(5, 1)
    advantage, returns = gae(reward, value, next_value, terminated, done, 0.5, 0.5)
    # delta: 1+10-10 = 1; 2+0-20 = -18; 3+20-30 = -7; 4+30-40 = -6; 5+35-50 = -10
    # A: 1 + 0.25 * -18 = -3.5; -18; -7 + 0.25 * -6 = -8.5; -6; -10
    expected = torch.tensor([-3.5, -18.0, -8.5, -6.0, -10.0])
    torch.testing.assert_close(advantage.flatten(), expected)
    torch.testing.assert_close(returns.flatten(), expected + value.flatten())


@pytest.mark.parametrize("gamma, lam", [(0.99, 0.95), (0.9, 0.9), (1.0, 1.0), (0.9, 0.0), (0.0, 0.9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_torchrl_s_function(gamma, lam, seed):
    reward, value, next_value, terminated, done = rollout(seed)

    def td(x):  # [T, E, A] -> [E, T, A]: TorchRL's time dimension is the second last
        return x.transpose(0, 1)

    def flags(x):
        return x.unsqueeze(-1).expand(T, E, A).transpose(0, 1)

    expected = generalized_advantage_estimate(
        gamma, lam, td(value), td(next_value), td(reward), flags(done), flags(terminated)
    )
    ours = gae(reward, value, next_value, terminated, done, gamma, lam)
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(td(x), y, rtol=1e-5, atol=1e-5)


def test_equals_torchrl_s_module_with_its_critic_on_true_next_observations():
    reward, observation, next_observation, terminated, done = rollout(2)
    critic = torch.nn.Linear(1, 1)
    module = GAE(
        gamma=0.99,
        lmbda=0.95,
        value_network=TensorDictModule(critic, in_keys=["observation"], out_keys=["state_value"]),
        vectorized=False,
    )

    def td(x):
        return x.permute(1, 2, 0).unsqueeze(-1)

    data = TensorDict(
        {
            "observation": td(observation),
            "next": {
                "observation": td(next_observation),
                "reward": td(reward),
                "terminated": per_agent(terminated),
                "done": per_agent(done),
            },
        },
        [E, A, T],
    )
    module(data)
    with torch.no_grad():
        value = critic(observation.unsqueeze(-1)).squeeze(-1)
        next_value = critic(next_observation.unsqueeze(-1)).squeeze(-1)
    advantage, returns = gae(reward, value, next_value, terminated, done, 0.99, 0.95)
    torch.testing.assert_close(td(advantage), data["advantage"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(td(returns), data["value_target"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_time_limit_is_no_end_of_the_world(lam):
    # Reward 1 for ever is worth 1 / (1 - gamma). A time limit takes nothing away: nothing was better or worse than
    # expected. A real end takes the future away: the expectation was too high by gamma / (1 - gamma).
    gamma, worth = 0.9, 10.0
    reward, value = torch.ones(T, E, A), torch.full((T + 1, E, A), worth)
    value[1:][9] = 3.0  # after the end at step 9 another episode begins, whose value must not matter
    truncated = torch.zeros(T, E, dtype=torch.bool)
    truncated[9] = True
    ends = truncated.flatten().nonzero().squeeze(-1)
    next_value = bootstrap(value, torch.full((len(ends), A), worth), ends)
    steps = slice(0, 10)
    never = torch.zeros_like(truncated)
    advantage, _ = gae(reward, value[:-1], next_value, never, truncated, gamma, lam)
    torch.testing.assert_close(advantage[steps], torch.zeros(10, E, A), rtol=0, atol=1e-5)
    advantage, _ = gae(reward, value[:-1], next_value, truncated, truncated, gamma, lam)
    torch.testing.assert_close(advantage[9], torch.full((E, A), -gamma * worth))
    for t in range(9):
        expected = -gamma * worth * (gamma * lam) ** (9 - t)
        torch.testing.assert_close(advantage[t], torch.full((E, A), expected))


def test_next_value_of_a_terminated_step_is_not_even_looked_at():
    reward, value, next_value, terminated, done = rollout()
    expected = gae(reward, value, next_value, terminated, done, 0.99, 0.95)
    next_value[terminated] = math.nan
    inputs = [x.clone() for x in (reward, value, next_value, terminated, done)]
    ours = gae(reward, value, next_value, terminated, done, 0.99, 0.95)
    assert all(torch.equal(x, y) for x, y in zip(ours, expected, strict=True))
    for before, after in zip(inputs, (reward, value, next_value, terminated, done), strict=True):
        assert torch.equal(before.nan_to_num(7.0), after.nan_to_num(7.0))  # the inputs are left alone


def test_an_end_cuts_what_comes_after():
    reward, value, next_value, terminated, done = rollout(3)
    terminated, done = torch.zeros_like(terminated), torch.zeros_like(done)
    done[10] = True
    advantage, _ = gae(reward, value, next_value, terminated, done, 0.99, 0.95)
    reward[11:] += 100.0
    changed, _ = gae(reward, value, next_value, terminated, done, 0.99, 0.95)
    assert torch.equal(advantage[:11], changed[:11]) and not torch.equal(advantage[11:], changed[11:])


def test_bootstrap_replaces_the_next_values_of_truncated_steps_only():
    value, final = torch.randn(T + 1, E, A), torch.randn(T, E, A)
    truncated = torch.rand(T, E) < 0.2
    index = truncated.flatten().nonzero().squeeze(-1)
    before = value.clone()
    next_value = bootstrap(value, final.flatten(0, 1)[index], index)
    assert torch.equal(next_value[truncated], final[truncated])
    assert torch.equal(next_value[~truncated], value[1:][~truncated])
    assert torch.equal(value, before)
    empty = torch.empty(0, dtype=torch.int64)
    assert torch.equal(bootstrap(value, torch.empty(0, A), empty), value[1:])


def test_normalize_advantage():
    advantage = torch.randn(T, E, A) * torch.tensor([1.0, 10.0, 100.0]) + torch.tensor([5.0, 0.0, -5.0])
    assert normalize_advantage(advantage, "none") is advantage
    batch = normalize_advantage(advantage, "batch")
    assert batch.mean().item() == pytest.approx(0, abs=1e-5)
    assert batch.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert batch[..., 0].std() < 0.1 < 1.0 < batch[..., 2].std()
    agent = normalize_advantage(advantage, "agent")
    torch.testing.assert_close(agent.mean((0, 1)), torch.zeros(A), rtol=0, atol=1e-5)
    torch.testing.assert_close(agent.std((0, 1), correction=0), torch.ones(A), rtol=1e-4, atol=0)
    for mode in ("batch", "agent"):
        constant = normalize_advantage(torch.full((T, E, A), 0.5), mode)
        assert torch.equal(constant, torch.zeros(T, E, A))


def test_explained_variance():
    returns = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert explained_variance(returns, returns).item() == 1.0
    assert explained_variance(returns + 7.0, returns).item() == pytest.approx(1.0)
    assert explained_variance(torch.full((2, 2), 9.0), returns).item() == pytest.approx(0.0)
    assert explained_variance(-returns, returns).item() == pytest.approx(-3.0)
    assert math.isnan(explained_variance(returns, torch.ones(2, 2)).item())
