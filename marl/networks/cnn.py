"""Convolutional network over images."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from marl.core.errors import UserError
from marl.networks.common import (
    ActivationName,
    Gain,
    Init,
    Probability,
    Shape,
    Width,
    activation_module,
    initialise,
    shape_tuple,
)


class CNN(nn.Module):
    """Convolution → activation → (max-pooling) per entry of `channels`, an MLP of `hidden`, a linear head.

    forward: float [..., C, H, W] → float [..., out_features], `in_shape` being (C, H, W).
    `pool` is the window and stride of the max-pooling; 1 means none.
    Raises UserError for another input shape, or where the convolutions leave no pixel.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        channels: Sequence[Width] = (32, 64),
        kernel_size: Width = 3,
        stride: Width = 1,
        padding: Annotated[int, Field(ge=0)] = 1,
        pool: Width = 2,
        hidden: Sequence[Width] = (128,),
        activation: ActivationName = "relu",
        dropout: Probability = 0.0,
        init: Init = "default",
        last_gain: Gain | None = None,
        gain: Gain | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = shape_tuple(in_shape)
        self.out_features = out_features
        if len(self.in_shape) != 3:
            raise UserError(f"network=cnn: reads images (channels, height, width), not inputs {self.in_shape}")
        depth, *size = self.in_shape
        layers: list[nn.Module] = []
        for index, width in enumerate(channels):
            layers += [nn.Conv2d(depth, width, kernel_size, stride, padding), activation_module(activation)]
            if pool > 1:
                layers.append(nn.MaxPool2d(pool))
            size = [((n + 2 * padding - kernel_size) // stride + 1) // pool for n in size]
            if min(size) < 1:
                raise UserError(
                    f"network.channels={list(channels)}: with kernel_size={kernel_size}, stride={stride}, "
                    f"padding={padding}, pool={pool}, layer {index + 1} leaves no pixel of {self.in_shape}; "
                    "use fewer layers, more padding or a smaller pool"
                )
            depth = width
        layers.append(nn.Flatten())
        features = depth * size[0] * size[1]
        for width in hidden:
            layers += [nn.Linear(features, width), activation_module(activation)]
            if dropout:
                layers.append(nn.Dropout(dropout))
            features = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(features, out_features)
        initialise(self.body, self.head, activation, init, last_gain, gain)

    def forward(self, x: Tensor) -> Tensor:
        leading = x.shape[:-3]
        return self.head(self.body(x.reshape(-1, *self.in_shape))).reshape(*leading, self.out_features)
