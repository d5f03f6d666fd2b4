"""Multi-layer perceptron: the actor's, the critic's and the classifier's."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from marl.core.errors import UserError
from marl.networks import fused_mlp
from marl.networks.batch_norm import BatchNorm
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


class MLP(nn.Module):
    """Linear → (LayerNorm or BatchNorm) → activation → (dropout) per hidden layer, then a linear head.

    forward: float [..., *in_shape] → float [..., out_features]; an `in_shape` of several sizes is flattened.
    `hidden=[]` is a linear model. Raises UserError for an unknown activation or initialisation.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        hidden: Sequence[Width] = (256, 256),
        activation: ActivationName = "tanh",
        layer_norm: bool = False,
        batch_norm: bool = False,
        dropout: Probability = 0.0,
        init: Init = "default",
        last_gain: Gain | None = None,
        gain: Gain | None = None,
    ) -> None:
        super().__init__()
        if layer_norm and batch_norm:
            raise UserError("network.layer_norm=true and network.batch_norm=true: one of them must be false")
        self.in_shape = shape_tuple(in_shape)
        self.out_features = out_features
        self._flatten_from = None if len(self.in_shape) == 1 else -len(self.in_shape)
        layers: list[nn.Module] = []
        width = math.prod(self.in_shape)
        for size in hidden:
            layers.append(nn.Linear(width, size))
            if layer_norm:
                layers.append(nn.LayerNorm(size))
            if batch_norm:
                layers.append(BatchNorm(size))
            layers.append(activation_module(activation))
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = size
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, out_features)
        initialise(self.body, self.head, activation, init, last_gain, gain)
        self.activation = activation
        self.plain = bool(hidden) and not (layer_norm or batch_norm or dropout) and fused_mlp.available(activation)

    def forward(self, x: Tensor) -> Tensor:
        # Rollouts call this at every step: no branch on tensors.
        if self._flatten_from is not None:
            x = x.flatten(self._flatten_from)
        if self.plain:
            layers = [*self.body, self.head][::2]  # the others are activations
            if fused_mlp.worthwhile(x, layers):
                return fused_mlp.mlp(x, layers, self.activation)
        return self.head(self.body(x))
