"""Rows selected by the compiled function, against torch's, of any type and where some lie apart."""

import pytest
import torch

from agents.fused_ops.gather import Gather
from marl.native import library

TABLES = [torch.arange(24.0).view(4, 3, 2), torch.tensor([True, False, True, True]), torch.arange(4) * 10]
APART = [-torch.arange(12.0).view(2, 3, 2), None, torch.tensor([-1, -2])]
FIRST, SECOND = torch.tensor([3, 0, 3, 1]), torch.tensor([1, 2, 0, 0])


@pytest.mark.parametrize("compiled", [True, False])
def test_rows_are_those_of_their_numbers_or_those_apart(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    monkeypatch.setattr(library, "enabled", compiled)
    number = torch.tensor([-1, 1, 0, -1], dtype=torch.int32)
    floats, flags, whole = Gather(TABLES, [0, 0, 1], APART)([FIRST, SECOND], number)
    expected = [TABLES[0][3], APART[0][1], APART[0][0], TABLES[0][1]]
    assert torch.equal(floats, torch.stack(expected))
    assert flags.tolist() == [True, True, True, False] and flags.dtype == torch.bool
    assert whole.tolist() == [10, -2, -1, 0] and whole.dtype == torch.int64


@pytest.mark.parametrize("compiled", [True, False])
def test_without_rows_apart_their_numbers_are_not_read(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    monkeypatch.setattr(library, "enabled", compiled)
    number = torch.full((4,), -1, dtype=torch.int32)
    (floats,) = Gather(TABLES[:1], [0], [TABLES[0][:0]])([SECOND], number)
    assert torch.equal(floats, TABLES[0][SECOND])


def test_indices_need_not_lie_one_after_the_other() -> None:
    both = torch.stack([FIRST, SECOND], -1)
    (whole,) = Gather(TABLES[2:], [1], [None])([both[:, 0], both[:, 1]], torch.full((4,), -1, dtype=torch.int32))
    assert whole.tolist() == [10, 20, 0, 0]
