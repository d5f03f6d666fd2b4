"""Rows of many tables in one call of a compiled function (`gather.cpp`), for minibatches of replayed steps.

A minibatch of a hundred steps is ten tables' rows. To select them one by one costs more in calls than in copies.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from marl.native import library
from marl.native.compiler import FLAGS
from marl.native.library import NUMBER, POINTER


class Gather:
    """Selects rows of tables that stay where they are.

    Args:
        tables: [R, ...] of any types.
        which: for each the number of its index among those that a call is given.
        others: for each where some of its rows lie instead, [M, ...], or None.
    """

    def __init__(self, tables: Sequence[Tensor], which: Sequence[int], others: Sequence[Tensor | None]) -> None:
        self.tables, self.which = list(tables), list(which)
        self.others = [None if other is None or not len(other) else other for other in others]
        known = [*self.tables, *[other for other in self.others if other is not None]]
        self.compiled = all(tensor.is_cpu and tensor.is_contiguous() for tensor in known)
        self.kinds = [(table.shape[1:], table.dtype) for table in self.tables]
        pointers = self.pointers = ctypes.c_void_p * len(self.tables)
        self.places = pointers(*[table.data_ptr() for table in self.tables])
        self.other_places = pointers(*[None if other is None else other.data_ptr() for other in self.others])
        sizes = [table[:1].nbytes for table in self.tables]
        self.bytes = (ctypes.c_int64 * len(sizes))(*sizes)

    def __call__(self, indices: Sequence[Tensor], number: Tensor) -> list[Tensor]:
        """The rows of each table, [B, ...].

        Args:
            indices: int64 [B] each.
            number: int32 [B]: rows of `others`, where these are not negative.
        """
        if not self.compiled or (lib := functions()) is None:
            return self.by_torch(indices, number)
        return self.by(lib, indices, number)

    def by(self, lib: ctypes.CDLL, indices: Sequence[Tensor], number: Tensor) -> list[Tensor]:
        """As a call, with this library."""
        indices, number, count = [index.contiguous() for index in indices], number.contiguous(), len(number)
        outs = [torch.empty((count, *shape), dtype=dtype) for shape, dtype in self.kinds]
        at = [index.data_ptr() for index in indices]
        lib.gather(
            count, len(outs), self.places, self.pointers(*[at[i] for i in self.which]), self.other_places,
            number.data_ptr(), self.bytes, self.pointers(*[out.data_ptr() for out in outs]),
        )  # fmt: skip
        return outs

    def by_torch(self, indices: Sequence[Tensor], number: Tensor) -> list[Tensor]:
        """As a call, table by table."""
        outs, apart, number = [], number >= 0, number.clamp(min=0)
        for table, which, other in zip(self.tables, self.which, self.others, strict=True):
            value = table.index_select(0, indices[which])
            if other is not None:
                shaped = apart.view(-1, *[1] * (value.dim() - 1))
                value = torch.where(shaped, other.index_select(0, number), value)
            outs.append(value)
        return outs


def _check(lib: ctypes.CDLL) -> None:
    """Hold it to torch's selection. Raises RuntimeError."""
    tables, others = [torch.arange(15.0).view(5, 3), torch.arange(5) % 2 == 0], [-torch.arange(6.0).view(2, 3), None]
    rows, given = Gather(tables, [1, 0], others), ([torch.tensor([1, 2, 3]), torch.tensor([4, 0, 4])],)
    number = torch.tensor([-1, 1, -1], dtype=torch.int32)
    if not all(map(torch.equal, rows.by(lib, *given, number), rows.by_torch(*given, number))):
        raise RuntimeError("it differs from torch")


functions = library.Library(
    [Path(__file__).with_name("gather.cpp")],
    FLAGS,
    {"width": ([], NUMBER), "gather": ([NUMBER] * 2 + [POINTER] * 6, None)},
    _check,
    "replayed steps are selected table by table, not by a compiled function",
)
