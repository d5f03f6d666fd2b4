"""An MLP that looks up its categorical inputs in tables of learned vectors."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from marl.core.errors import UserError
from marl.networks.common import ActivationName, Gain, Init, Probability, Shape, Width, initialise, shape_tuple
from marl.networks.mlp import MLP


class Embedding(nn.Module):
    """Each categorical column through a table of vectors of its own (Bengio et al. 2003), the others as they are, then
    an MLP of `hidden`.

    forward: float [..., *in_shape] → float [..., out_features]. `categories` {column of the flattened input: number of
    categories n}; such a column holds whole numbers 0 … n − 1 as floats, so its data must not be normalised. `size` is
    the length of a vector. For agents: observations with discrete parts. Raises UserError for a column that does not
    exist; torch raises IndexError for a category out of range.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        categories: dict[int, Width],
        size: Width = 8,
        hidden: Sequence[Width] = (64, 64),
        activation: ActivationName = "tanh",
        dropout: Probability = 0.0,
        init: Init = "default",
        last_gain: Gain | None = None,
        gain: Gain | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = shape_tuple(in_shape)
        self.out_features = out_features
        width = math.prod(self.in_shape)
        columns = {int(column): count for column, count in categories.items()}
        if not columns or min(columns) < 0 or max(columns) >= width:
            raise UserError(f"network.categories={categories}: names one or more columns, 0 to {width - 1}")
        self.columns = sorted(columns)
        rest = [column for column in range(width) if column not in columns]
        self.rest: Tensor
        self.register_buffer("rest", torch.tensor(rest, dtype=torch.long), persistent=False)
        self.tables = nn.ModuleList(nn.Embedding(columns[column], size) for column in self.columns)
        self.mlp = MLP(len(rest) + size * len(columns), out_features, hidden, activation, dropout=dropout, init=init,
                       last_gain=last_gain, gain=gain)  # fmt: skip
        if isinstance(init, dict) and "embedding" in init:
            initialise(self.tables, nn.Linear(1, 1), activation, {"embedding": init["embedding"]}, None, gain)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(-len(self.in_shape))
        embedded = [table(x[..., column].long()) for table, column in zip(self.tables, self.columns, strict=True)]
        return self.mlp(torch.cat([x[..., self.rest], *embedded], -1))
