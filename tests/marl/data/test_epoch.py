"""An epoch's minibatches: which rows, in which order, whole or in pieces."""

import torch

from marl.data.epoch import Epoch

ROWS = {"agents": {"x": torch.arange(10.0).view(5, 2)}, "state": torch.arange(5)}


def shown(epoch: Epoch) -> list[list[int]]:
    return [batch["state"].tolist() for batch in epoch]


def test_minibatches_are_the_rows_in_their_order() -> None:
    epoch = Epoch(ROWS, torch.tensor([4, 0, 2, 1, 3]), 2)
    assert epoch.count == 3 and shown(epoch) == [[4, 0], [2, 1], [3]]
    first = next(iter(epoch))
    assert first["agents", "x"].tolist() == [[8, 9], [0, 1]] and first.batch_size == (2,)


def test_without_an_order_the_rows_are_the_one_minibatch() -> None:
    epoch = Epoch(ROWS, None, 5)
    (batch,) = epoch
    assert epoch.count == 1 and list(epoch.pieces(3)) == [epoch]
    assert batch["state"].data_ptr() == ROWS["state"].data_ptr()  # as they lie


def test_pieces_are_the_same_minibatches() -> None:
    epoch = Epoch(ROWS, torch.tensor([4, 0, 2, 1, 3]), 1)
    pieces = list(epoch.pieces(2))
    assert [piece.count for piece in pieces] == [2, 2, 1]
    assert [batch for piece in pieces for batch in shown(piece)] == shown(epoch) == [[4], [0], [2], [1], [3]]
