"""The compiled terms of PPO's loss against torch's operations: the same gradients, bitwise where both can."""

import platform

import pytest
import torch
from torch import Tensor, nn

from agents.algorithms.ppo_losses import mean_weights, value_loss
from agents.fused_ops import native
from agents.fused_ops.autograd import CategoricalTerms, ClippedSurrogate, NormalLogProb
from marl.native import library

SIZES = [(1,), (7, 3), (500, 3), (33, 5)]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def both(monkeypatch, function, *leaves: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Results of function(*leaves) and the leaves' gradients: compiled, and by torch's operations."""
    results_of_both = []
    for enabled in (True, False):
        monkeypatch.setattr(library, "enabled", enabled)
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        results = function(*inputs)
        score = sum((numbers(*x.shape, seed=i) * x).sum() for i, x in enumerate(results) if x.requires_grad)
        results_of_both.append([*[x.detach() for x in results], *torch.autograd.grad(score, inputs)])
        assert (native.functions() is None) != enabled
    return results_of_both[0], results_of_both[1]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("D", [1, 2, 3])
@pytest.mark.parametrize("masked", [None, "dimensions", "agents"])
@pytest.mark.parametrize("size", SIZES)
def test_normal_is_torchs_to_the_bit(size, masked, D, monkeypatch):
    mask = None if masked is None else (numbers(*size[-1:], D) > -0.5).float()
    mask = mask[0] if masked == "dimensions" else mask
    raw = 2 * numbers(*size, D, seed=1)
    params = 3 * numbers(*size, 2 * D)
    assert_equal(*both(monkeypatch, lambda x: [NormalLogProb.apply(x, raw, 0.5, 0.01, mask)], params))


@pytest.mark.parametrize("C", [1, 2, 9, 40, native.CHOICES, native.CHOICES + 1])
@pytest.mark.parametrize("size", SIZES)
def test_categorical_is_torchs(size, C, monkeypatch):
    choice = torch.randint(C, (*size, 2, 1), generator=torch.Generator().manual_seed(1))
    logits = 3 * numbers(*size, 2, C)
    logits[..., :: max(C // 3, 2)] = -1e30  # choices that don't exist
    choice = torch.where(logits.gather(-1, choice) < -1e29, logits.argmax(-1, keepdim=True), choice)
    ours, theirs = both(monkeypatch, lambda x: CategoricalTerms.apply(x, choice), logits)
    assert_close(ours, theirs)
    assert all(x.isfinite().all() for x in ours)


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_scaled(size):
    factors, rows = numbers(*size), numbers(*size, 4, seed=1)
    for row_factors in (factors, factors[:1].expand_as(factors)):
        assert torch.equal(native.scale(row_factors, rows), row_factors.unsqueeze(-1) * rows)


@pytest.mark.parametrize("dual", [None, 1.5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("clip", [0.2, torch.tensor(0.13)])
@pytest.mark.parametrize("size", SIZES)
def test_surrogate_is_torchs(size, clip, weighted, dual, monkeypatch):
    advantage = numbers(*size, seed=2)
    weight = mean_weights(numbers(*size, seed=3) > 0) if weighted else None
    ours, theirs = both(
        monkeypatch, lambda x: ClippedSurrogate.apply(x, advantage, clip, dual, weight), 0.3 * numbers(*size)
    )
    assert_close(ours[:3], theirs[:3])
    assert_equal(ours[3:], theirs[3:])  # the gradient


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("kind", ["l2", "huber"])
@pytest.mark.parametrize("size", SIZES)
def test_value_loss_is_torchs(size, kind, clip, monkeypatch):
    target, old = numbers(*size, seed=2), numbers(*size, seed=4)
    value = old + 0.3 * numbers(*size)
    if size[0] > 1:
        value[0] = old[0]  # both losses are equal
    ours, theirs = both(monkeypatch, lambda x: [value_loss(x, target, old, kind, 0.7, clip)], value)
    assert_close(ours, theirs)
    if kind == "l2":
        assert_equal(ours[:1], theirs[:1])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its vectors have one length")
@pytest.mark.parametrize("absent", [("-mno-avx512f",), ("-mno-avx512f", "-mno-avx", "-mno-fma")])
def test_processors_with_shorter_vectors_get_the_same(absent, monkeypatch):
    build, raw, mask = library.compile_library, 2 * numbers(33, 5, 3, seed=1), (numbers(5, 3) > -0.5).float()
    choice, advantage = torch.randint(9, (33, 5, 1), generator=torch.Generator().manual_seed(1)), numbers(33, 5, seed=2)
    monkeypatch.setattr(library, "compile_library", lambda source, flags: build(source, (*flags, *absent)))
    assert native.functions().width() == (8 if len(absent) == 1 else 4)
    for function, leaf in (
        (lambda x: [NormalLogProb.apply(x, raw, 0.5, 0.01, mask)], 3 * numbers(33, 5, 6)),
        (lambda x: CategoricalTerms.apply(x, choice), 3 * numbers(33, 5, 9)),
        (lambda x: ClippedSurrogate.apply(x, advantage, 0.2, 1.5, None), 0.3 * numbers(33, 5)),
        (lambda x: [value_loss(x, advantage, numbers(33, 5, seed=4), "huber", 0.7, 0.2)], numbers(33, 5)),
    ):
        with monkeypatch.context() as patch:
            assert_close(*both(patch, function, leaf))


def test_what_is_no_number_stays_so():
    x = torch.tensor([0.1, float("nan"), 0.2])
    assert ClippedSurrogate.apply(x, torch.ones(3), 0.2, None, None)[0].isnan()
    assert value_loss(x, torch.ones(3)).isnan().tolist() == [False, True, False]
    assert CategoricalTerms.apply(torch.tensor([[0.0, float("nan")]]), torch.tensor([[0]]))[0].isnan().all()


def test_a_choice_that_does_not_exist_is_no_number_and_nothing_is_written_for_it():
    logits = numbers(3, 4).requires_grad_()
    log_prob, entropy = CategoricalTerms.apply(logits, torch.tensor([[0], [4], [-1]]))
    assert log_prob.isnan().tolist() == [False, True, True] and entropy.isfinite().all()
    (by_logits,) = torch.autograd.grad(entropy.sum(), logits)
    assert by_logits.isfinite().all()


def test_a_target_that_learns_gets_its_gradient():
    value, target = numbers(4).requires_grad_(), numbers(4, seed=1).requires_grad_()
    by_value, by_target = torch.autograd.grad(value_loss(value, target).sum(), (value, target))
    assert torch.equal(by_value, -by_target)


@pytest.mark.parametrize(
    "change", [Tensor.double, lambda x: x.t().contiguous().t(), lambda x: x[:, :2], lambda x: nn.Parameter(x)]
)
def test_other_tensors_are_left_to_torch(change):
    other = change(numbers(5, 3))
    assert native.value_loss(other, numbers(5, 3), None, 0.0, 0.0) is None
    assert native.surrogate(numbers(5, 3), other, 0.2, None, None) is None
    assert native.normal(numbers(5, 6), other, 0.5, 0.01, None) is None


def test_transforms_of_torch_see_operations():
    x, a = numbers(4, 5), numbers(4, 5, seed=1)
    expected = torch.stack([value_loss(v, t) for v, t in zip(x, a, strict=True)])
    torch.testing.assert_close(torch.vmap(value_loss)(x, a), expected)


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("square * K(-0.5f)", "square * K(-0.4f)"),
        ("out[e * C + choice[e]] += g", "out[e * C + choice[e]] += f"),
        ("slope = K(2.0f) * error", "slope = error"),
        ("factors[e] * numbers[f]", "factors[e] + numbers[f]"),
    ],
)
def test_functions_that_differ_from_torch_are_not_used(right, wrong, monkeypatch):
    build = library.compile_library

    def bent(source, flags):
        assert right in source
        return build(source.replace(right, wrong), flags)

    monkeypatch.setattr(library, "compile_library", bent)
    with pytest.warns(UserWarning, match="operation by operation.*differs from torch"):
        assert native.value_loss(numbers(3), numbers(3), None, 0.0, 0.0) is None
