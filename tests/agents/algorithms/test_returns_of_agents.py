"""Returns of agents that end each on their own, by hand, and statistics that leave out the dead."""

import torch

from agents.algorithms.advantages import bootstrap, explained_variance, gae
from agents.algorithms.cloning_loss import discounted
from agents.models.normalization import RewardNorm, ValueNorm


def test_gae_by_hand():
    """γ = λ = 0.5, V = 4 everywhere but 8 at the true final observation of the one that is cut off."""
    reward, value = torch.ones(4, 1, 3), torch.full((5, 1, 3), 4.0)
    terminated = torch.zeros(4, 1, 3, dtype=torch.bool)
    truncated = terminated.clone()
    terminated[1, 0, 0], truncated[2, 0, 1] = True, True
    index = truncated.any(-1).flatten().nonzero().squeeze(-1)
    final = torch.tensor([[100.0, 8.0, 100.0]])  # only the second was cut off there
    next_value = bootstrap(value, final, index, truncated)
    assert next_value[2, 0].tolist() == [4, 8, 4]
    advantage, returns = gae(reward, value[:-1], next_value, terminated, terminated | truncated, 0.5, 0.5)
    # δ = 1 + 2 − 4 = −1 on the way, −3 where terminated, 1 + 4 − 4 = 1 where cut off; A = δ + A' / 4.
    assert advantage[:2, 0, 0].tolist() == [-1.75, -3.0]
    assert advantage[:3, 0, 1].tolist() == [-1 - 0.1875, -0.75, 1.0]
    assert advantage[:, 0, 2].tolist() == [-1.328125, -1.3125, -1.25, -1.0]
    assert torch.equal(returns, advantage + 4)


def test_plain_flags_are_each_agents():
    g = torch.Generator().manual_seed(0)
    reward, value, end = torch.randn(6, 4, 3, generator=g), torch.randn(7, 4, 3, generator=g), torch.rand(6, 4) < 0.3
    wide = end.unsqueeze(-1).expand(6, 4, 3)
    for terminated in (end, torch.zeros_like(end)):
        plain = gae(reward, value[:-1], value[1:], terminated, end, 0.9, 0.8)
        each = gae(reward, value[:-1], value[1:], terminated.unsqueeze(-1).expand(6, 4, 3), wide, 0.9, 0.8)
        assert all(torch.equal(a, b) for a, b in zip(plain, each, strict=True))
    index = end.flatten().nonzero().squeeze(-1)
    final = torch.randn(len(index), 3, generator=g)
    assert torch.equal(bootstrap(value, final, index), bootstrap(value, final, index, end))
    assert torch.equal(bootstrap(value, final, index), bootstrap(value, final, index, wide))


def test_statistics_are_those_of_the_living():
    g = torch.Generator().manual_seed(0)
    x, y, alive = torch.randn(7, 3, 2, generator=g), torch.randn(7, 3, 2, generator=g), torch.rand(7, 3, 2) < 0.6
    some, all_of = ValueNorm(0.5), ValueNorm(0.5)
    some.update(x, alive)
    all_of.update(x[alive])
    torch.testing.assert_close(some.state_dict(), all_of.state_dict())
    some.update(x, torch.zeros_like(alive))  # nobody: nothing is learned
    torch.testing.assert_close(some.state_dict(), all_of.state_dict())
    torch.testing.assert_close(explained_variance(x, y, alive), explained_variance(x[alive], y[alive]))


def test_rewards_are_scaled_by_each_agents_own_return():
    """γ = 0.5, reward 1: G = 1, 1.5 of the first, who then ends and is dead; 1, 1.5, 1.75 of the other."""
    norm, done = RewardNorm(1, 2, 0.5), torch.tensor([[[False, False]], [[True, False]], [[False, True]]])
    alive, reward = torch.tensor([[[True, True]], [[True, True]], [[False, True]]]), torch.ones(3, 1, 2)
    reward[2, 0, 0] = 0.0
    scaled = norm(reward, done, alive)
    returns = torch.tensor([1, 1.5, 1, 1.5, 1.75])
    assert norm.moments.count == 5 and norm.carry.tolist() == [[0.0, 0.0]]
    torch.testing.assert_close(scaled, reward / returns.std(correction=0))


def test_returns_of_clones_by_hand():
    """γ = 0.5: the first agent is terminated at its 2nd step, the second cut off there where 40 lies beyond."""
    reward, ended = torch.ones(4, 2), torch.zeros(4, 2, dtype=torch.bool)
    ended[1], ended[3] = True, True
    rest = torch.tensor([[0.0, 0.0], [0.0, 40.0], [0.0, 0.0], [8.0, 0.0]])
    flags = torch.tensor([False, False, False, True])
    got = discounted(reward, flags, torch.full((1, 2), 99.0), torch.tensor([4]), 0.5, (ended, rest))
    assert got.T.tolist() == [[1.5, 1.0, 3.5, 5.0], [11.5, 21.0, 1.5, 1.0]]
