"""Policy heads against TorchRL's distributions, torch's, and numerical integration."""

import math

import pytest
import torch
from tensordict.nn import NormalParamExtractor
from torchrl.modules import TanhNormal as TorchRLTanhNormal

from agents.models.heads import Categorical, ClippedNormal, TanhNormal, make_head
from envs.spec import ActionSpec
from marl.core.errors import UserError

A, D = 3, 2


def continuous(low=-1.0, high=2.0, mask=None):
    return ActionSpec("continuous", torch.full((A, D), low), torch.full((A, D), high), (), mask)


def discrete(*nvec, mask=None):
    return ActionSpec("discrete" if len(nvec) == 1 else "multi_discrete", None, None, nvec, mask)


ALL = [
    (continuous(), "tanh_normal"),
    (continuous(), "clipped_normal"),
    (discrete(5), "categorical"),
    (discrete(3, 5, 2), "categorical"),
]
IDS = ["tanh_normal", "clipped_normal", "discrete", "multi_discrete"]


def params_for(head, *leading, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*leading, A, head.n_features, generator=g)


@pytest.mark.parametrize("spec, kind", ALL, ids=IDS)
def test_shapes_dtypes_and_bounds(spec, kind):
    head = make_head(spec, kind)
    params = params_for(head, 4, 6, scale=3.0)
    raw, log_prob = head.sample(params, torch.Generator().manual_seed(1))
    assert raw.shape == (4, 6, A, head.raw_size) == head.mode(params).shape
    assert raw.dtype == head.raw_dtype == head.mode(params).dtype
    for x in (log_prob, head.log_prob(params, raw), head.entropy(params), head.log_jacobian(raw)):
        assert x.shape == (4, 6, A) and x.dtype == torch.float32
    action = head.to_env(raw)
    assert action.shape == raw.shape
    if spec.kind == "continuous":
        assert (action >= spec.low).all() and (action <= spec.high).all()
    else:
        assert (action >= 0).all() and (action < torch.tensor(spec.nvec)).all()


@pytest.mark.parametrize("mask", [None, torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).bool()])
@pytest.mark.parametrize("kind", ["tanh_normal", "clipped_normal"])
def test_log_prob_with_a_gradient_equals_the_plain_formula(kind, mask):
    head = make_head(continuous(mask=mask), kind, init_std=0.7)
    params = params_for(head, 50, scale=2.0).requires_grad_()
    raw, weight = head.draw(params, head.noise((50, A), "cpu")).detach(), torch.randn(50, A)
    loc, std = head.loc_std(params)
    terms = -0.5 * ((raw - loc) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    plain = (terms if mask is None else terms * mask).sum(-1)
    ours = head.log_prob(params, raw)
    assert torch.equal(ours, plain) and torch.equal(ours, head.log_prob(params.detach(), raw))
    gradients = [torch.autograd.grad((weight * x).sum(), params)[0] for x in (ours, plain)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", [discrete(5), discrete(3, 5, 2)])
def test_categorical_terms_and_gradients_equal_autograds(spec):
    head = make_head(spec)
    params = params_for(head, 50, scale=2.0).requires_grad_()
    raw, weight = head.draw(params, head.noise((50, A), "cpu")), torch.randn(2, 50, A)
    log_p = [x.log_softmax(-1) for x in params.split(head.nvec, -1)]
    plain_log_prob = sum(x.gather(-1, raw[..., i : i + 1]).squeeze(-1) for i, x in enumerate(log_p))
    plain_entropy = sum(-(x.exp() * x).sum(-1) for x in log_p)
    both = head.log_prob_and_entropy(params, raw)
    torch.testing.assert_close(both, (plain_log_prob, plain_entropy))
    torch.testing.assert_close(head.entropy(params), plain_entropy)
    for ours, plain in [
        (head.log_prob(params, raw) * weight[0], plain_log_prob * weight[0]),
        (both[0] * weight[0] + both[1] * weight[1], plain_log_prob * weight[0] + plain_entropy * weight[1]),
    ]:
        torch.testing.assert_close(*(torch.autograd.grad(x.sum(), params, retain_graph=True)[0] for x in (ours, plain)))


@pytest.mark.parametrize("spec, kind", ALL, ids=IDS)
def test_log_prob_of_the_sample_is_the_loss_s_to_the_bit(spec, kind):
    # The ratio of a policy that has not moved is exactly 1.
    head = make_head(spec, kind)
    params = params_for(head, 64)
    raw, log_prob = head.sample(params)
    assert torch.equal(log_prob, head.log_prob(params, raw))


@pytest.mark.parametrize("spec, kind", ALL, ids=IDS)
def test_generator_decides_the_sample_and_noise_can_be_drawn_beforehand(spec, kind):
    head = make_head(spec, kind)
    params = params_for(head, 64)
    raw = head.sample(params, torch.Generator().manual_seed(3))[0]
    torch.manual_seed(9)
    assert torch.equal(raw, head.sample(params, torch.Generator().manual_seed(3))[0])
    assert not torch.equal(raw, head.sample(params, torch.Generator().manual_seed(4))[0])
    noise = head.noise((64, A), "cpu", torch.Generator().manual_seed(3))
    assert noise.shape == (64, A, head.noise_size)
    assert torch.equal(raw, head.sample(params, noise=noise)[0])


@pytest.mark.parametrize("init_std", [1.0, 0.3])
def test_standard_deviation_equals_torchrl_s(init_std):
    head = make_head(continuous(), init_std=init_std)
    params = params_for(head, 100, scale=5.0)
    loc, std = NormalParamExtractor(f"biased_softplus_{init_std}")(params)
    ours = head.loc_std(params)
    torch.testing.assert_close(ours[0], loc)
    torch.testing.assert_close(ours[1], std, rtol=1e-5, atol=1e-6)
    at_zero = head.loc_std(torch.zeros(1, A, head.n_features))[1]
    torch.testing.assert_close(at_zero, torch.full((1, A, D), init_std))


@pytest.mark.parametrize("shared, rows", [(True, 1), (False, A)])
def test_independent_standard_deviation_is_a_parameter(shared, rows):
    head = make_head(continuous(), std="independent", init_std=0.5, shared=shared)
    assert head.n_features == D and head.log_std.shape == (rows, D)
    params = params_for(head, 7)
    torch.testing.assert_close(head.loc_std(params)[1], torch.full((rows, D), 0.5))
    head.log_prob(params, head.sample(params)[0]).sum().backward()
    assert (head.log_std.grad != 0).all()
    torch.testing.assert_close(
        make_head(continuous(), "clipped_normal", "independent", 0.5).entropy(params),
        torch.full((7, A), D * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5))),
    )


def test_tanh_normal_density_equals_torchrl_s():
    head = make_head(continuous(), "tanh_normal")
    params = params_for(head, 200)
    loc, std = NormalParamExtractor()(params)
    oracle = TorchRLTanhNormal(loc, std, low=torch.full((A, D), -1.0), high=torch.full((A, D), 2.0))
    raw = 1.5 * torch.randn(200, A, D, generator=torch.Generator().manual_seed(5))
    expected = oracle.log_prob(head.to_env(raw))
    ours = head.log_prob(params, raw) - head.log_jacobian(raw)
    # atanh of a rounded action loses digits near the bounds: that is TorchRL's error, hence the tolerance.
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)
    centre = raw.abs().amax(-1) < 1.5
    assert centre.any()
    torch.testing.assert_close(ours[centre], expected[centre], rtol=1e-5, atol=1e-5)


def test_tanh_normal_density_integrates_to_one_in_environment_units():
    spec = ActionSpec("continuous", torch.tensor([[-1.0]]), torch.tensor([[3.0]]), (), None)
    head = make_head(spec)
    raw = torch.linspace(-12, 12, 200_001, dtype=torch.float64).view(-1, 1, 1)
    params = torch.tensor([[0.4, -0.3]]).expand(len(raw), 1, 2)
    density = (head.log_prob(params, raw) - head.log_jacobian(raw)).exp().squeeze(-1)
    area = torch.trapezoid(density.double(), (1 + 2 * raw.tanh()).flatten())
    assert area.item() == pytest.approx(1.0, abs=1e-4)


def test_tanh_normal_is_finite_where_tanh_saturates():
    head = make_head(continuous(), "tanh_normal")
    params = params_for(head, 8).requires_grad_()
    raw = torch.full((8, A, D), 60.0)
    log_prob = head.log_prob(params, raw) - head.log_jacobian(raw)
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and params.grad.isfinite().all()
    # log(1 - tanh^2) of 60 is 2 log 2 - 120, which 1 - tanh^2 = 0 in float32 could not tell.
    expected = D * (math.log(1.5) + 2 * (math.log(2) - 60.0))
    torch.testing.assert_close(head.log_jacobian(raw), torch.full((8, A), expected))


def test_tanh_normal_entropy_is_the_mean_of_minus_log_prob_and_so_is_its_gradient():
    head = make_head(continuous(), "tanh_normal")
    params = params_for(head, 1).requires_grad_()
    many = params.expand(200_000, A, head.n_features)
    (gradient,) = torch.autograd.grad(head.entropy(many, torch.Generator().manual_seed(2)).mean(0).sum(), params)
    loc, std = NormalParamExtractor()(many)
    oracle = TorchRLTanhNormal(loc, std, low=torch.full((A, D), -1.0), high=torch.full((A, D), 2.0))
    torch.manual_seed(0)
    expected = -oracle.rsample_and_log_prob()[1].mean(0)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), params)
    ours = head.entropy(many, torch.Generator().manual_seed(2)).mean(0)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0.01)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=0.02)


def test_clipped_normal_equals_torch():
    head = make_head(continuous(), "clipped_normal")
    params = params_for(head, 50)
    oracle = torch.distributions.Normal(*NormalParamExtractor()(params))
    raw, log_prob = head.sample(params)
    torch.testing.assert_close(log_prob, oracle.log_prob(raw).sum(-1))
    torch.testing.assert_close(head.entropy(params), oracle.entropy().sum(-1))
    torch.testing.assert_close(head.to_env(raw), raw.clamp(-1.0, 2.0))
    assert (raw > 2.0).any() and (raw < -1.0).any()  # stored unclipped


def test_bounds_are_per_agent_and_dimension():
    low, high = torch.tensor([[0.0, -1.0], [2.0, -3.0]]), torch.tensor([[1.0, 1.0], [4.0, -2.0]])
    spec = ActionSpec("continuous", low, high, (), None)
    for head in (make_head(spec, "tanh_normal"), make_head(spec, "clipped_normal")):
        torch.testing.assert_close(head.to_env(torch.full((5, 2, 2), -50.0)), low.expand(5, 2, 2))
        torch.testing.assert_close(head.to_env(torch.full((5, 2, 2), 50.0)), high.expand(5, 2, 2))


@pytest.mark.parametrize("nvec", [(5,), (3, 5, 2), (4, 4)])
def test_categorical_equals_torch(nvec):
    head = make_head(discrete(*nvec))
    params = params_for(head, 50, scale=2.0)
    oracles = [torch.distributions.Categorical(logits=x) for x in params.split(nvec, -1)]
    raw, log_prob = head.sample(params)
    expected = sum(o.log_prob(raw[..., d]) for d, o in enumerate(oracles))
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(head.entropy(params), sum(o.entropy() for o in oracles))
    assert torch.equal(head.mode(params), torch.stack([o.probs.argmax(-1) for o in oracles], -1))
    assert torch.equal(head.to_env(raw), raw)


def test_categorical_gradients_equal_torch_s_with_unequal_choices():
    head = make_head(discrete(3, 5))
    params = params_for(head, 20).requires_grad_()
    raw = head.sample(params)[0]
    (ours,) = torch.autograd.grad((head.log_prob(params, raw) + head.entropy(params)).sum(), params)
    oracles = [torch.distributions.Categorical(logits=x) for x in params.split((3, 5), -1)]
    total = sum((o.log_prob(raw[..., d]) + o.entropy()).sum() for d, o in enumerate(oracles))
    torch.testing.assert_close(ours, torch.autograd.grad(total, params)[0])


def test_samples_follow_the_distribution():
    head = make_head(discrete(3, 5))
    params = params_for(head, 1)
    raw = head.sample(params.expand(100_000, A, 8), torch.Generator().manual_seed(1))[0]
    for d, logits in enumerate(params[0].split((3, 5), -1)):
        frequency = torch.nn.functional.one_hot(raw[..., d], logits.shape[-1]).float().mean(0)
        torch.testing.assert_close(frequency, logits.softmax(-1), rtol=0, atol=0.01)
    head = make_head(continuous())
    params = params_for(head, 1)
    raw = head.sample(params.expand(100_000, A, 2 * D), torch.Generator().manual_seed(1))[0]
    loc, std = head.loc_std(params)
    torch.testing.assert_close(raw.mean(0), loc[0], rtol=0, atol=0.03)
    torch.testing.assert_close(raw.std(0), std[0], rtol=0.02, atol=0)


@pytest.mark.parametrize("kind", ["tanh_normal", "clipped_normal", "categorical"])
def test_padded_dimensions_count_for_nothing(kind):
    mask = torch.ones(A, D, dtype=torch.bool)
    mask[1, 1] = False  # agent 1 has one dimension only
    if kind == "categorical":
        spec, full = discrete(4, 4, mask=mask), discrete(4, 4)
    else:
        full, spec = continuous(), continuous(mask=mask)
        spec.low[1, 1] = spec.high[1, 1] = 0.0  # an empty range, as padding may leave it
    head, unmasked = make_head(spec, kind), make_head(full, kind)
    params = params_for(head, 10).requires_grad_()
    raw = head.sample(params)[0]
    log_prob = head.log_prob(params, raw) - head.log_jacobian(raw)
    entropy = head.entropy(params, torch.Generator().manual_seed(0))
    assert log_prob.isfinite().all() and entropy.isfinite().all()
    (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), params)
    padded = gradient[:, 1, 4:] if kind == "categorical" else gradient[:, 1, 1::2]
    assert (padded == 0).all() and gradient.isfinite().all()
    assert (gradient[:, 1].abs().sum(-1) > 0).all()
    # The agents that are whole are as without a mask.
    expected = unmasked.log_prob(params, raw) - unmasked.log_jacobian(raw)
    torch.testing.assert_close(log_prob[:, [0, 2]], expected[:, [0, 2]])


def test_auto_and_impossible_combinations():
    assert isinstance(make_head(continuous()), TanhNormal)
    assert isinstance(make_head(continuous(high=math.inf)), ClippedNormal)
    assert isinstance(make_head(discrete(5)), Categorical)
    assert isinstance(make_head(discrete(5, 2)), Categorical)
    wrong = [(continuous(), "categorical"), (discrete(5), "tanh_normal"), (discrete(5), "clipped_normal")]
    for spec, kind in wrong:
        with pytest.raises(UserError, match=f"algo.policy={kind} does not fit {spec.kind} actions"):
            make_head(spec, kind)
    with pytest.raises(UserError, match="finite action bounds"):
        make_head(continuous(high=math.inf), "tanh_normal")


def test_densities_are_float32_under_autocast():
    head = make_head(continuous())
    params = params_for(head, 9).bfloat16()
    raw, log_prob = head.sample(params)
    assert raw.dtype == log_prob.dtype == head.entropy(params).dtype == torch.float32


@pytest.mark.parametrize("spec, kind", ALL, ids=IDS)
def test_compiles_into_one_graph(spec, kind):
    head = make_head(spec, kind)
    params = params_for(head, 16)
    noise = head.noise((16, A), "cpu", torch.Generator().manual_seed(0))

    def act(params, noise):
        raw, log_prob = head.sample(params, noise=noise)
        return head.to_env(raw), log_prob, head.log_jacobian(raw), head.mode(params), head.entropy(params)

    compiled = torch.compile(act, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    expected = act(params, noise)
    torch.manual_seed(0)
    for ours, eager in zip(compiled(params, noise), expected, strict=True):
        torch.testing.assert_close(ours, eager)
