"""Weights that follow others in one compiled call: torch's own numbers, whoever helped."""

import copy

import pytest
import torch

from marl.native import library, threads
from marl.optim import fused_lerp
from marl.optim.fused_lerp import Lerp

SHAPES = [(257, 300), (40_001,), (5,), (3, 7)]


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def test_a_quarter_of_the_way():
    target, source = torch.tensor([0.0, 8.0]), torch.tensor([4.0, 0.0])
    Lerp([target], [source])(0.25)
    assert target.tolist() == [1.0, 6.0] and source.tolist() == [4.0, 0.0]


@pytest.mark.parametrize("share", [0.005, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("helpers", [0, 1, 3])
def test_the_numbers_are_torchs(share, helpers):
    ours, theirs, sources = tensors(0), tensors(0), tensors(1)
    step = Lerp(ours, sources)
    try:
        threads.allow(helpers)
        for _ in range(5):
            step(share)
            torch._foreach_lerp_(theirs, sources, share)
    finally:
        threads.allow(None)
    exact = library.enabled and fused_lerp.functions().width() == 16
    torch.testing.assert_close(ours, theirs, **({"rtol": 0, "atol": 0} if exact else {"rtol": 1e-6, "atol": 1e-7}))


def test_a_copy_moves_its_own():
    target, source = torch.zeros(3), torch.ones(3)
    step = Lerp([target], [source])
    step(0.5)
    other = copy.deepcopy(step)
    other(0.5)
    assert target.tolist() == [0.5] * 3 and other.targets[0].tolist() == [0.75] * 3


def test_tensors_may_move_and_others_are_left_to_torch(monkeypatch):
    target = torch.nn.Parameter(torch.zeros(3))
    step = Lerp([target], [torch.ones(3)])
    step(0.5)
    target.data = torch.full((3,), 4.0)
    step(0.5)
    assert target.tolist() == [2.5] * 3
    halves = torch.zeros(3, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)[1:]
    Lerp([halves[0]], [halves[1]])(0.5)
    assert halves[0].tolist() == [0.5] * 3
    monkeypatch.setattr(library, "enabled", False)
    step(0.5)
    assert target.tolist() == [1.75] * 3
