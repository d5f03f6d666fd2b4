"""LSTM and GRU over a sequence: the rows of an image, or the steps of a series."""

from torch import Tensor, nn

from marl.errors import UserError
from marl.networks.common import Gain, Probability, Shape, Width, initialise, shape_tuple


class _Recurrent(nn.Module):
    """A sequence through `layers` recurrent layers of `hidden` units; the last step's output through a linear head.

    forward: float [..., L, F] → float [..., out_features] for `in_shape` (L, F), L the sequence length;
    an image (C, H, W) is read row by row, as H steps of C·W features. Raises UserError for another shape.
    """

    cell: type[nn.RNNBase]

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        hidden: Width = 128,
        layers: Width = 1,
        dropout: Probability = 0.0,
        last_gain: Gain | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = shape_tuple(in_shape)
        self.out_features = out_features
        if len(self.in_shape) not in (2, 3):
            raise UserError(
                f"network={type(self).__name__.lower()}: reads sequences (length, features) or images (channels, "
                f"height, width), not inputs {self.in_shape}"
            )
        if dropout and layers == 1:
            raise UserError(f"network.dropout={dropout}: acts between its layers; with network.layers=1 it must be 0")
        is_image = len(self.in_shape) == 3
        features = self.in_shape[0] * self.in_shape[2] if is_image else self.in_shape[1]
        self.body = self.cell(features, hidden, layers, batch_first=True, dropout=dropout)
        self.head = nn.Linear(hidden, out_features)
        initialise(self.body, self.head, "tanh", "default", last_gain)

    def forward(self, x: Tensor) -> Tensor:
        leading = x.shape[: x.dim() - len(self.in_shape)]
        x = x.reshape(-1, *self.in_shape)
        if len(self.in_shape) == 3:
            x = x.transpose(1, 2).flatten(2)  # [N, C, H, W] → [N, H, C·W]: one image row per step
        steps, _ = self.body(x)
        return self.head(steps[:, -1]).reshape(*leading, self.out_features)


class LSTM(_Recurrent):
    __doc__ = (_Recurrent.__doc__ or "") + "The cell is the LSTM (Hochreiter and Schmidhuber 1997)."
    cell = nn.LSTM


class GRU(_Recurrent):
    __doc__ = (_Recurrent.__doc__ or "") + "The cell is the GRU (Cho et al. 2014)."
    cell = nn.GRU
