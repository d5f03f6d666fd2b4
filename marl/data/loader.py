"""Minibatches of rows in memory, of a map-style data set or of a stream, from this process or from workers.

What a batch holds depends on (seed, epoch, its number in the epoch) alone: not on the number of workers, and not on
where a run was stopped and resumed, be it in the midst of an epoch.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from marl.core import distributed
from marl.core.errors import UserError
from marl.core.seeding import derive, generator
from marl.data.augment import mixup
from marl.data.samplers import Order, Sampling, Subset, Weights
from marl.data.stream import Stream, StreamBatches

Augment = Callable[[Tensor, torch.Generator], Tensor]
Rows = TensorDict | Dataset | Stream
# torch's own way on Linux, which torchrl's import changes for the whole process: spawned workers start in seconds each,
# forked ones in milliseconds, and they need no copy of the data.
START = "fork" if sys.platform == "linux" else None


@dataclass
class Request:
    """Which rows one batch is made of: epoch, its number within, indices int64 [B]."""

    epoch: int
    number: int
    index: Tensor


class Fetch(Dataset):
    """Turns a Request into a batch; what a worker process holds."""

    def __init__(
        self, rows: TensorDict | Dataset, seed: int, augment: Sequence[Augment], alpha: float, own_target: bool = False
    ) -> None:
        self.rows, self.seed, self.augment, self.alpha, self.own_target = rows, seed, augment, alpha, own_target
        self.stream = distributed.stream("augment")

    def __getitem__(self, request: Request) -> TensorDict:
        return self.change(take(self.rows, request.index), request.epoch, request.number)

    def change(self, batch: TensorDict, epoch: int, number: int) -> TensorDict:
        """Augmented and mixed, from random numbers of this batch's own."""
        where = f"{self.stream}/{epoch}/{number}"
        if self.augment:
            source, batch = generator(self.seed, where), batch.clone(recurse=False)
            for change in self.augment:
                if self.own_target and getattr(change, "moves", False):  # what only disturbs x is there to be undone
                    moved = change(batch["y"].view_as(batch["x"]), source.clone_state())
                    batch.set("y", moved.flatten(1))
                batch.set("x", change(batch["x"], source))
        return mixup(batch, self.alpha, derive(self.seed, f"mixup {where}")) if self.alpha else batch

    def __getitems__(self, request: Request) -> dict[str, Tensor]:
        """For the DataLoader's workers, which hand plain tensors over in shared memory."""
        return dict(self[request].items())


class Plan:
    """The requests of what is to come: a batch sampler that outlives epochs, so that the workers do too."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)


class Loader:
    """Minibatches of `batch_size` rows, each epoch in an order of its own.

    Args:
        rows: TensorDict [N] of "x" and "y"; or a map-style torch Dataset whose items are (x, y) or {"x": …, "y": …};
            or a `Stream`.
        seed: the order is a function of it and of the epoch's number.
        sampler, weights, subset: see `marl.data.samplers.Order`.
        drop_last: leave a last, smaller batch out.
        workers: processes that make the batches; 0: this one does.
        pin_memory: hand batches over in page-locked memory, from which a GPU copies while it computes.
        augment: changes of "x", one after the other, each called with x [B, …] and a generator.
        mixup: α of `marl.data.augment.mixup`; 0: none.
        own_target: "y" is "x" itself, flattened, and what has the attribute `moves` (Shift, Flip) changes both.
        among: int64, the rows that there are, out of more in `rows`; None: all.
        device: where the batches go.

    Several processes take equal parts of each minibatch, so that the mean of their gradients is that of the
    minibatch; rows that don't divide evenly are left out of it.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: int,
        sampler: Sampling = "random",
        weights: Weights | None = None,
        subset: Subset | None = None,
        drop_last: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
        augment: Sequence[Augment] = (),
        mixup: float = 0.0,
        own_target: bool = False,
        among: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        self.workers, self.pin_memory = workers, pin_memory and torch.cuda.is_available()
        self.among, self.device, self.plan = among, device, Plan()
        self.fetch, self._processes = Fetch(rows, seed, augment, mixup, own_target), None
        self.stream = rows if isinstance(rows, Stream) else None
        if self.stream and sampler != "random":
            raise UserError(f"task.sampler={sampler}: a stream has no numbered rows; random is allowed")
        count = len(rows) if among is None else len(among)
        labels = self._labels() if weights is not None else None
        self.order = Order(count, sampler, weights, subset, labels, generator(seed, "subset"))

    def _labels(self) -> Tensor | None:
        y = self.rows["y"] if isinstance(self.rows, TensorDict) and "y" in self.rows.keys() else None
        return y if y is None or self.among is None else y[self.among]

    @property
    def rows(self) -> Rows:
        """What batches are taken from; other rows put in their place are all taken, in random order."""
        return self.fetch.rows

    @rows.setter
    def rows(self, rows: Rows) -> None:
        self.fetch.rows, self.among, self._processes, self.order = rows, None, None, Order(len(rows))

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole = self.order.length // self.batch_size
        return whole if self.drop_last else -(-self.order.length // self.batch_size)

    def permutation(self, epoch: int) -> Tensor:
        """The rows of this epoch in its order: int64, on the rows' device."""
        # Drawn on the CPU, whose generator gives the same numbers on every machine.
        order = self.order.draw(generator(self.seed, f"shuffle/{epoch}"))
        order = order if self.among is None else self.among[order]
        device = getattr(self.rows, "device", None)
        return order if device is None else order.to(device)

    def epoch(self, epoch: int) -> Iterator[TensorDict]:
        """TensorDicts [B] that together hold every row of the epoch."""
        return self.span(epoch * len(self), len(self))

    def span(self, first: int, count: int) -> Iterator[TensorDict]:
        """`count` batches from number `first` on, counted from the beginning of epoch 0 through all epochs."""
        self.fetch.seed = self.seed
        if self.stream:
            yield from self._streamed(first, count)
            return
        self.plan.requests = list(self._requests(first, count))
        batches = (self.fetch[request] for request in self.plan.requests)
        if self.workers or self.pin_memory:
            batches = (TensorDict(content, batch_size=[len(content["x"])]) for content in self._workers())
        for batch in batches:
            yield batch if self.device is None else batch.to(self.device, non_blocking=self.pin_memory)

    def _requests(self, first: int, count: int) -> Iterator[Request]:
        processes, rank, known = distributed.world(), distributed.rank(), None
        for position in range(first, first + count):
            epoch, number = divmod(position, len(self))
            if known is None or known[0] != epoch:
                known = epoch, self.permutation(epoch).split(self.batch_size)
            index = known[1][number]
            index = index[rank : len(index) // processes * processes : processes] if processes > 1 else index
            if len(index):
                yield Request(epoch, number, index)

    def _workers(self) -> Any:
        """The DataLoader: made once, since starting processes takes longer than many an epoch."""
        if self._processes is None:
            self._processes = DataLoader(
                self.fetch,
                batch_sampler=cast(Any, self.plan),  # its items are whatever `fetch` takes
                num_workers=self.workers,
                collate_fn=dict,
                pin_memory=self.pin_memory,
                persistent_workers=self.workers > 0,
                multiprocessing_context=START if self.workers else None,
                generator=torch.Generator(),  # the DataLoader's own draws must not move the global stream
            )
        return self._processes

    def _streamed(self, first: int, count: int) -> Iterator[TensorDict]:
        done = 0
        while done < count:
            epoch, number = divmod(first + done, len(self))
            here = min(count - done, len(self) - number)
            source = StreamBatches(self.stream, self.seed, epoch, range(number, number + here), self.batch_size)
            how = {"num_workers": self.workers, "multiprocessing_context": START if self.workers else None}
            loader = DataLoader(source, batch_size=None, generator=torch.Generator(), **how)
            for offset, (x, y) in enumerate(loader):
                batch = TensorDict({"x": x, "y": y}, batch_size=[len(x)])
                batch = self.fetch.change(batch, epoch, number + offset)
                yield batch if self.device is None else batch.to(self.device)
            done += here


def take(rows: TensorDict | Dataset, index: Tensor | Sequence[int]) -> TensorDict:
    """The rows `index` as a TensorDict [B]: of one in memory, or collated from the items of a map-style data set."""
    if isinstance(rows, TensorDict):
        return rows[torch.as_tensor(index)]
    items = default_collate([rows[int(i)] for i in index])
    if not isinstance(items, dict):
        items = dict(zip(("x", "y"), items, strict=True))
    items["x"] = items["x"].float()
    items["y"] = items["y"].float() if items["y"].is_floating_point() else items["y"].long()
    return TensorDict(items, batch_size=[len(index)])
