"""Random actions of every kind of range, and specs as plain Python."""

import json
import math

import pytest
import torch

from envs.spec import ActionSpec, EnvSpec, GroupSpec, describe, sample_actions, spec_of

INF = math.inf
CPU = torch.device("cpu")


def drawn(action: ActionSpec, seed: int = 0, num_envs: int = 4000, mask=None) -> torch.Tensor:
    agents = tuple("ab"[: 2 if action.low is None else len(action.low)])
    spec = EnvSpec({"g": GroupSpec("g", agents, 1, action, () if mask is None else ("action",))})
    return sample_actions(spec, num_envs, CPU, torch.Generator().manual_seed(seed), {"g": {"action": mask}})["g"]


def box(*bounds: tuple[float, float]) -> ActionSpec:
    low, high = (torch.tensor([list(side)]) for side in zip(*bounds, strict=True))
    return ActionSpec("continuous", low, high)


def test_ranges_with_infinite_bounds_are_drawn_as_gymnasium_draws_them():
    spec = box((-INF, INF), (2.0, INF), (-INF, -1.0), (3.0, 5.0))
    action = drawn(spec)
    assert action.shape == (4000, 1, 4) and action.dtype == torch.float32 and action.isfinite().all()
    free, above, below, between = action[:, 0].T
    # Means of 4,000: a standard normal's 0, an exponential's 1 from its bound, a uniform's middle; deviations 1, 1, 1,
    # 2 / sqrt(12) = 0.577, so that means are within 0.08 five times out of a million.
    for values, mean, std in ((free, 0, 1), (above, 3, 1), (below, -2, 1), (between, 4, 0.577)):
        assert values.mean() == pytest.approx(mean, abs=0.08) and values.std() == pytest.approx(std, abs=0.08)
    assert above.min() >= 2 and below.max() <= -1 and between.min() >= 3 and between.max() <= 5
    assert torch.equal(action, drawn(spec)) and not torch.equal(action, drawn(spec, seed=1))


def test_bounds_too_far_apart_for_their_difference_are_kept():
    far = torch.finfo(torch.float32).max
    action = drawn(box((-far, far)))
    assert action.isfinite().all() and action.abs().max() <= far and (action > 0).any() and (action < 0).any()


def test_finite_ranges_are_drawn_as_ever():
    spec, generator = box((-1.0, 2.0), (0.0, 0.5)), torch.Generator().manual_seed(7)
    unit = torch.rand(5, 1, 2, generator=generator)
    assert torch.equal(drawn(spec, 7, 5), spec.low + unit * (spec.high - spec.low))


HYBRID = ActionSpec("hybrid", torch.tensor([[-1.0], [0.0]]), torch.tensor([[1.0], [INF]]), (3, 2))


def test_hybrid_actions_are_numbers_then_choices():
    action = drawn(HYBRID)
    assert action.shape == (4000, 2, 3) and action.dtype == torch.float32
    assert (HYBRID.n_continuous, HYBRID.size, HYBRID.dtype, HYBRID.bounded) == (1, 3, torch.float32, False)
    assert (action[..., 0] >= HYBRID.low[:, 0]).all() and action[:, 0, 0].max() <= 1 and action.isfinite().all()
    for d, n in ((1, 3), (2, 2)):
        assert sorted(action[..., d].unique().tolist()) == list(range(n))


def test_forbidden_choices_of_hybrid_actions_are_not_drawn():
    mask = torch.tensor([[[False, True, True, True, False], [True, False, False, False, True]]]).expand(4000, 2, 5)
    choices = drawn(HYBRID, mask=mask)[..., 1:]
    assert sorted(choices[:, 0, 0].unique().tolist()) == [1, 2] and choices[:, 0, 1].unique().tolist() == [0]
    assert choices[:, 1].unique(dim=0).tolist() == [[0, 1]]


def test_clamping_leaves_choices_as_they_are():
    action = torch.tensor([[[-5.0, 2.0, 1.0], [-5.0, 2.0, 1.0]]])
    assert HYBRID.clamped(action).tolist() == [[[-1, 2, 1], [0, 2, 1]]]
    choice = torch.tensor([[[4]]])
    assert ActionSpec("discrete", nvec=(5,)).clamped(choice) is choice


def test_specs_survive_being_written_with_infinite_bounds_and_hybrid_kinds():
    spec = EnvSpec({"g": GroupSpec("g", ("a", "b"), 4, HYBRID, ("action",))}, 3, 9)
    again = spec_of(json.loads(json.dumps(describe(spec))))
    action = again.groups["g"].action
    assert (action.kind, action.nvec, again.groups["g"].masks) == ("hybrid", (3, 2), ("action",))
    assert torch.equal(action.low, HYBRID.low) and torch.equal(action.high, HYBRID.high)
