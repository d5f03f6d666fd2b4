"""Data sets that are read row by row (iterable ones), for files larger than memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from marl.core import distributed
from marl.core.errors import UserError
from marl.core.seeding import generator
from marl.data.base import Fraction, Seed
from marl.data.table import Cells, check_labels, classes, inputs, lines, located, target_hint

Row = tuple[Tensor, Tensor]


class Stream(ABC):
    """Training rows that come one after the other. Subclass it with `rows` and `__len__`.

    buffer: rows held to be shuffled: each next row is drawn from the buffer and replaced by the next one read. 1 keeps
        the order of the file.
    """

    buffer = 1

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """All (x, y) in an order that is always the same."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    def shuffled(self, seed: int, epoch: int) -> Iterator[Row]:
        """`rows` through the buffer, in an order that is a function of seed and epoch."""
        source, buffer = generator(seed, f"shuffle/{epoch}"), []
        for row in self.rows():
            buffer.append(row)
            if len(buffer) >= self.buffer:
                yield _drawn(buffer, source)
        while buffer:
            yield _drawn(buffer, source)


def _drawn(buffer: list[Row], source: torch.Generator) -> Row:
    place = int(torch.randint(len(buffer), (), generator=source))
    buffer[place], buffer[-1] = buffer[-1], buffer[place]
    return buffer.pop()


class StreamBatches(IterableDataset):
    """Batches `numbers` of an epoch of a stream, each made by the worker whose turn it is.

    Every worker reads the whole stream and keeps every n-th batch, which the DataLoader puts together in turn: the
    batches are the same with any number of workers. Several processes of a run take equal parts of each.
    """

    def __init__(self, stream: Stream, seed: int, epoch: int, numbers: range, batch_size: int) -> None:
        self.stream, self.seed, self.epoch = stream, seed, epoch
        self.numbers, self.batch_size = numbers, batch_size
        self.rank, self.processes = distributed.rank(), distributed.world()

    def __iter__(self) -> Iterator[Row]:
        worker = get_worker_info()
        worker_id, count = (worker.id, worker.num_workers) if worker else (0, 1)
        rows, number = [], 0
        for row in self.stream.shuffled(self.seed, self.epoch):
            rows.append(row)
            if len(rows) == self.batch_size:
                if self._wanted(number, worker_id, count):
                    yield self._made(rows)
                rows, number = [], number + 1
                if number >= self.numbers.stop:
                    return
        if rows and self._wanted(number, worker_id, count):
            yield self._made(rows)

    def _wanted(self, number: int, worker_id: int, count: int) -> bool:
        return number in self.numbers and (number - self.numbers.start) % count == worker_id

    def _made(self, rows: list[Row]) -> Row:
        share = rows[self.rank : len(rows) // self.processes * self.processes : self.processes]
        return torch.stack([x for x, _ in share]), torch.stack([y for _, y in share])


class _Moments:
    """Mean and deviation of rows [...] that come one by one, by Welford's updates in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, row: Tensor) -> None:
        self.count += 1
        off = row.double() - self.mean
        self.mean = self.mean + off / self.count
        self.squares = self.squares + off * (row.double() - self.mean)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation, float32; the deviation of a constant is 1."""
        std = (self.squares / self.count).sqrt()
        return self.mean.float(), torch.where(std > 1e-8, std, 1.0).float()


class CSVStream(Stream):
    """A CSV file of numbers read row by row; it never lies in memory as a whole, but for the held-out rows.

    Every `round(1 / validation)`-th row is held out. `shift` and `scale` are mean and deviation of the training rows,
    from one pass over the file; `standardize_targets`, of a regression, as in `marl.data.ArrayData`. See
    `marl.data.readers.CSV` for `target` and `kind`, where classes are whole numbers from 0 on here. Raises UserError
    where the file can't be read so, with line and column; numbers must be finite.
    """

    def __init__(
        self,
        path: str,
        target: str | Sequence[str],
        kind: Literal["classification", "binary", "regression"] = "regression",
        validation: Fraction = 0.1,
        buffer: Annotated[int, Field(ge=1)] = 4096,
        seed: Seed = 0,
        standardize_targets: bool = True,
    ) -> None:
        self.path, self.kind, self.buffer = located(f"data.path={path}", path), kind, buffer
        self.targets = [target] if isinstance(target, str) else list(target)
        self.every, self.offset = max(2, round(1 / validation)), seed
        moments, aims, largest, held_out = _Moments(), _Moments(), 0.0, []
        for number, (line, x, y) in enumerate(self._lines()):
            largest = max(largest, float(y.max()))
            check_labels(y, kind, lambda at, line=line: f"line {line}, column {self.targets[at[0]]!r} of {path}")
            if self._held_out(number):
                held_out.append(self._row(x, y))
            else:
                moments.add(x)
                aims.add(y)
        rows = moments.count + len(held_out)
        if not moments.count or not held_out:
            raise UserError(f"data.path={path}: {rows} rows, too few to hold some out")
        self.count, self.in_shape = moments.count, tuple(x.shape)
        self.out_features = classes(largest, rows, path) if kind == "classification" else len(self.targets)
        self.shift, self.scale = moments.statistics()
        if kind == "regression" and standardize_targets:
            self.target_shift, self.target_scale = aims.statistics()
        x, y = (torch.stack(part) for part in zip(*held_out, strict=True))
        self.train, self.test = self, None
        self.validation = TensorDict({"x": x, "y": y}, batch_size=[len(x)])

    def __len__(self) -> int:
        return self.count

    def _held_out(self, number: int) -> bool:
        return (number + self.offset) % self.every == 0

    def rows(self) -> Iterator[Row]:
        return (self._row(*row) for number, row in enumerate(self._read()) if not self._held_out(number))

    def _row(self, x: Tensor, y: Tensor) -> Row:
        return x, y[0].long() if self.kind == "classification" else y

    def _read(self) -> Iterator[Row]:
        return ((x, y) for _, x, y in self._lines())

    def _lines(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The number of each line, its inputs and its targets."""
        source = lines(self.path)
        _, header = next(source, (1, []))
        columns = inputs(self.path, header, self.targets)
        x = Cells(self.path, header, columns, "every input must be one")
        y = Cells(self.path, header, self.targets, target_hint(self.kind))
        for line, row in source:
            yield line, torch.tensor(x.read(line, row)), torch.tensor(y.read(line, row))
