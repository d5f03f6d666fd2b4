"""An epoch over rows that lie on the device: its minibatches in their order, one by one or as a whole."""

from collections.abc import Iterator, Mapping

import torch
from tensordict import TensorDict
from torch import Tensor


class Epoch:
    """Iterates over the minibatches of an epoch, each a TensorDict [B].

    rows: nested dict of tensors [N, …].
    order: int64 [M], the rows of the minibatches one after another; None: all rows as they lie are the one minibatch.
    size: B, rows of a minibatch; the last one may be smaller.
    """

    def __init__(self, rows: Mapping, order: Tensor | None, size: int) -> None:
        self.rows, self.order, self.size = rows, order, size

    def __iter__(self) -> Iterator[TensorDict]:
        if self.order is None:
            yield TensorDict(self.rows, batch_size=[self.size])
            return
        for index in self.order.split(self.size):
            yield TensorDict(take(self.rows, index), batch_size=[len(index)])

    @property
    def count(self) -> int:
        """Minibatches."""
        return 1 if self.order is None else -(-len(self.order) // self.size)

    def pieces(self, most: int) -> Iterator["Epoch"]:
        """The same minibatches as epochs of `most` at most."""
        if self.order is None:
            yield self
            return
        for order in self.order.split(most * self.size):
            yield Epoch(self.rows, order, self.size)


def take(rows: Mapping, index: Tensor) -> dict:
    """The rows `index` (int64 [B]) of a nested dict of tensors, copied; several times faster than `tensor[index]`."""
    return {k: v.index_select(0, index) if isinstance(v, torch.Tensor) else take(v, index) for k, v in rows.items()}
