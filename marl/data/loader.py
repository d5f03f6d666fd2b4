"""Shuffled minibatches from rows in memory."""

from collections.abc import Iterator

import torch
from tensordict import TensorDict

from marl import distributed
from marl.seeding import generator


class ShuffledBatches:
    """Minibatches of `rows` [N], each epoch in an order of its own; the last one is smaller where N doesn't divide.

    The order is a function of (seed, epoch) alone: whoever resumes at epoch n sees the order that an uninterrupted
    run would have seen, on every device.
    """

    def __init__(self, rows: TensorDict, batch_size: int, seed: int) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def permutation(self, epoch: int) -> torch.Tensor:
        """The order of the rows in this epoch: int64 [N], on the rows' device."""
        # Drawn on the CPU, whose generator gives the same numbers on every machine.
        order = torch.randperm(len(self.rows), generator=generator(self.seed, f"shuffle/{epoch}"))
        return order.to(self.rows.device) if self.rows.device is not None else order

    def epoch(self, epoch: int) -> Iterator[TensorDict]:
        """TensorDicts [B] that together hold every row once.

        Several processes take equal parts of each minibatch, so that the mean of their gradients is that of the
        minibatch; rows of the last one that don't divide evenly are left out of the epoch.
        """
        count, rank = distributed.world(), distributed.rank()
        for index in self.permutation(epoch).split(self.batch_size):
            if count > 1:
                index = index[rank : len(index) // count * count : count]
            if len(index):
                yield self.rows[index]
