"""The head of hybrid actions against torch.distributions, by hand, under masks, and by its gradients."""

import math

import pytest
import torch
from torch import distributions as dist

from agents.models.actor import Actor, allowed
from agents.models.architecture import Architecture
from agents.models.heads import ABSENT, Categorical, ClippedNormal, TanhNormal, make_head
from agents.models.policy_heads.hybrid import Hybrid
from envs.spec import ActionSpec, GroupSpec
from marl.core.errors import UserError
from marl.networks import MLP

A, C, NVEC = 3, 2, (4, 2)
LOW, HIGH = torch.full((A, C), -1.0), torch.full((A, C), 2.0)
SPEC = ActionSpec("hybrid", LOW, HIGH, NVEC)


def params_for(head: Hybrid, *leading: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(*leading, A, head.n_features, generator=torch.Generator().manual_seed(0))


def oracle(head: Hybrid, params: torch.Tensor) -> tuple[dist.Distribution, list[dist.Distribution]]:
    """Torch's Gaussian of the C numbers and its categoricals, from the same parameters."""
    loc, std = head.continuous.loc_std(params[..., : 2 * C])
    choices = params[..., 2 * C :].split(NVEC, -1)
    return dist.Independent(dist.Normal(loc, std), 1), [dist.Categorical(logits=x) for x in choices]


@pytest.mark.parametrize(("kind", "gaussian"), [("auto", TanhNormal), ("clipped_normal", ClippedNormal)])
def test_which_heads_it_joins(kind: str, gaussian: type):
    head = make_head(SPEC, kind)
    assert isinstance(head, Hybrid) and type(head.continuous) is gaussian and type(head.discrete) is Categorical
    assert (head.n_features, head.raw_size, head.noise_size) == (2 * C + 6, C + 2, C + 2 * 4)
    assert (head.n_continuous, head.raw_dtype, head.name) == (C, torch.float32, f"Hybrid({gaussian.__name__})")


def test_infinite_bounds_get_the_clipped_gaussian_and_a_categorical_alone_is_refused():
    endless = ActionSpec("hybrid", LOW, torch.full((A, C), math.inf), NVEC)
    assert type(make_head(endless).continuous) is ClippedNormal
    with pytest.raises(UserError, match="algo.policy=categorical does not fit hybrid actions; use one of auto, tanh"):
        make_head(SPEC, "categorical")
    with pytest.raises(UserError, match="algo.policy=tanh_normal needs finite action bounds"):
        make_head(endless, "tanh_normal")


@pytest.mark.parametrize("kind", ["tanh_normal", "clipped_normal"])
def test_samples_are_in_range_whole_and_of_the_noise(kind: str):
    head = make_head(SPEC, kind)
    params = params_for(head, 5, 7)
    raw, log_prob = head.sample(params, torch.Generator().manual_seed(1))
    assert raw.shape == (5, 7, A, 4) and raw.dtype == torch.float32 and log_prob.shape == (5, 7, A)
    action = head.to_env(raw)
    assert (action[..., :C] >= -1).all() and (action[..., :C] <= 2).all()
    assert torch.equal(action[..., C:], raw[..., C:]) and torch.equal(raw[..., C:], raw[..., C:].round())
    assert (action[..., C:] >= 0).all() and (action[..., C:] < torch.tensor(NVEC)).all()
    assert torch.equal(log_prob, head.log_prob(params, raw))
    noise = head.noise((5, 7, A), "cpu", torch.Generator().manual_seed(1))
    assert torch.equal(head.sample(params, noise=noise)[0], raw)
    parts = head.continuous.draw(params[..., : 2 * C], noise[..., :C])
    assert torch.equal(raw[..., :C], parts)
    assert torch.equal(raw[..., C:].long(), head.discrete.draw(params[..., 2 * C :], noise[..., C:]))


def test_log_prob_is_the_sum_of_torchs():
    head = make_head(SPEC)
    params = params_for(head, 200)
    raw = head.sample(params)[0]
    gaussian, choices = oracle(head, params)
    expected = gaussian.log_prob(raw[..., :C])
    for d, categorical in enumerate(choices):
        expected = expected + categorical.log_prob(raw[..., C + d].long())
    torch.testing.assert_close(head.log_prob(params, raw), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        head.choice_log_prob(params, raw), expected - gaussian.log_prob(raw[..., :C]), rtol=1e-4, atol=1e-5
    )


def test_entropy_is_the_sum_of_torchs():
    head = make_head(SPEC, "clipped_normal")  # a squashed Gaussian's has no closed form
    params = params_for(head, 200)
    gaussian, choices = oracle(head, params)
    expected = gaussian.entropy() + sum(categorical.entropy() for categorical in choices)
    torch.testing.assert_close(head.entropy(params), expected, rtol=1e-5, atol=1e-5)
    both = head.log_prob_and_entropy(params, head.mode(params))
    torch.testing.assert_close(both[1], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[0], head.log_prob(params, head.mode(params)))


def test_numbers_computed_by_hand():
    one = ActionSpec("hybrid", torch.tensor([[-1.0]]), torch.tensor([[3.0]]), (2,))
    head = make_head(one)  # parameters: mean, deviation's, two logits
    params = torch.tensor([[0.5, 0.0, math.log(3.0), 0.0]])  # deviation 1 at 0; choices with 3/4 and 1/4
    raw = torch.tensor([[1.5, 1.0]])
    expected = -0.5 - 0.5 * math.log(2 * math.pi) + math.log(0.25)
    assert head.log_prob(params, raw).item() == pytest.approx(expected, abs=1e-6)
    # tanh(1.5) = 0.9051483; the middle of [-1, 3] is 1, half the range 2
    assert head.to_env(raw)[0].tolist() == pytest.approx([1 + 2 * 0.9051483, 1.0])
    assert head.mode(params)[0].tolist() == [0.5, 0.0]
    # log |d action / d raw| = log 2 + log(1 - 0.9051483^2)
    assert head.log_jacobian(raw).item() == pytest.approx(math.log(2 * (1 - 0.9051483**2)), abs=1e-5)


def test_gradients_equal_autograds_on_the_plain_formula():
    head = make_head(SPEC, "clipped_normal")
    params = params_for(head, 50).requires_grad_()
    raw, weight = head.sample(params)[0], torch.randn(2, 50, A, generator=torch.Generator().manual_seed(3))
    gaussian, choices = oracle(head, params)
    log_prob = gaussian.log_prob(raw[..., :C])
    log_prob = log_prob + sum(x.log_prob(raw[..., C + d].long()) for d, x in enumerate(choices))
    entropy = gaussian.entropy() + sum(x.entropy() for x in choices)
    ours = head.log_prob_and_entropy(params, raw)
    sums = [(weight[0] * a + weight[1] * b).sum() for a, b in (ours, (log_prob, entropy))]
    torch.testing.assert_close(*(torch.autograd.grad(x, params)[0] for x in sums), rtol=1e-4, atol=1e-5)


def test_gradients_by_finite_differences():
    head = make_head(ActionSpec("hybrid", torch.tensor([[-1.0]]), torch.tensor([[1.0]]), (3,))).double()
    params = torch.tensor([[0.3, -0.2, 0.1, 0.4, -0.6]], requires_grad=True)
    raw = torch.tensor([[0.7, 2.0]])
    (gradient,) = torch.autograd.grad(head.log_prob(params, raw).sum(), params)
    for k in range(5):
        step = torch.zeros(1, 5)
        step[0, k] = 1e-2
        with torch.no_grad():
            slope = (head.log_prob(params + step, raw) - head.log_prob(params - step, raw)) / 2e-2
        assert gradient[0, k].item() == pytest.approx(slope.item(), abs=1e-3)


def test_padded_numbers_and_choices_count_for_nothing():
    mask = torch.tensor([[True, True, True, True], [True, False, True, False], [True, True, True, False]])
    head, whole = (
        make_head(ActionSpec("hybrid", LOW, HIGH, NVEC, mask), "clipped_normal"),
        make_head(SPEC, "clipped_normal"),
    )
    params = params_for(head, 20)
    raw = head.sample(params)[0]
    assert torch.equal(head.log_prob(params, raw)[:, 0], whole.log_prob(params, raw)[:, 0])
    gaussian, choices = oracle(head, params)
    only = gaussian.base_dist.log_prob(raw[..., :C])[..., 0] + choices[0].log_prob(raw[..., C].long())
    torch.testing.assert_close(head.log_prob(params, raw)[:, 1], only[:, 1], rtol=1e-5, atol=1e-5)
    entropies = gaussian.base_dist.entropy()[..., 0] + choices[0].entropy()
    torch.testing.assert_close(head.entropy(params)[:, 1], entropies[:, 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("std", ["state", "independent"])
def test_masks_reach_the_choices_alone(std: str):
    group = GroupSpec("g", ("a", "b", "c"), 5, SPEC, ("action",))
    torch.manual_seed(0)
    actor = Actor(group, lambda *sizes: MLP(*sizes, hidden=[8]), Architecture(std=std))
    observation = torch.randn(300, A, 5)
    mask = torch.ones(300, A, 6, dtype=torch.bool)
    mask[:, 0, [0, 3, 4]] = False  # agent 0 chooses among 1 and 2, then 1
    mask[:, 1, :3] = False  # agent 1 chooses 3, then either
    free, masked = actor(observation), actor(observation, mask)
    n = actor.head.continuous.n_features
    assert torch.equal(masked[..., :n], free[..., :n]) and (masked[..., n:][~mask] == ABSENT).all()
    assert torch.equal(masked[..., n:][mask], free[..., n:][mask])
    raw, log_prob = actor.act(observation, generator=torch.Generator().manual_seed(0), mask=mask)
    assert set(raw[:, 0, C].tolist()) == {1.0, 2.0} and set(raw[:, 0, C + 1].tolist()) == {1.0}
    assert set(raw[:, 1, C].tolist()) == {3.0} and set(raw[:, 1, C + 1].tolist()) == {0.0, 1.0}
    # agent 0's second choice is certain: its log-probability and entropy are 0
    first = torch.distributions.Categorical(logits=free[:, 0, n + 1 : n + 3])
    expected = actor.head.continuous.log_prob(free[..., :n].contiguous(), raw[..., :C].contiguous())[:, 0]
    torch.testing.assert_close(log_prob[:, 0], expected + first.log_prob(raw[:, 0, C].long() - 1), rtol=1e-4, atol=1e-4)
    assert torch.equal(allowed(free, None), free)


def test_a_compiled_graph_gives_the_same():
    head = make_head(SPEC)
    params, noise = params_for(head, 6), head.noise((6, A), "cpu", torch.Generator().manual_seed(2))
    compiled = torch.compile(lambda p, z: head.to_env(head.draw(p, z)), fullgraph=True, backend="eager")
    assert torch.equal(compiled(params, noise), head.to_env(head.draw(params, noise)))
