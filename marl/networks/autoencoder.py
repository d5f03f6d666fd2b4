"""Auto-encoders: what goes in comes out again, through a few latent numbers; the plain and the variational one."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class Transposed(nn.Module):
    """x W + b with the weight W [out, in] of `source`, an nn.Linear: float [..., out] → [..., in].

    The weight is tied: it is the source's own parameter, counted, saved and trained once.
    """

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.source = [source]  # in a list, so that it is not registered a second time
        self.bias = nn.Parameter(torch.zeros(source.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.source[0].weight.t(), self.bias)


class AutoEncoder(nn.Module):
    """An encoder of `hidden` layers down to `latent` numbers, and a decoder of the same layers backwards.

    forward: float [..., *in_shape] → float [..., out_features]; `encode` gives the code [..., latent]. With as many
    outputs as inputs it learns to reconstruct (`data=digits_reconstruction`); with others it is an MLP with a
    bottleneck, for agents and classifiers too.
    `tied`: the decoder's weights are the encoder's, transposed (Vincent et al. 2010). Raises UserError where `tied`
    meets another number of outputs than inputs.
    """

    codes = 1  # latent numbers that the encoder gives, in units of `latent`

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        hidden: Sequence[Width] = (128,),
        latent: Width = 16,
        activation: ActivationName = "relu",
        tied: bool = False,
        dropout: Probability = 0.0,
        init: Init = "default",
        last_gain: Gain | None = None,
        gain: Gain | None = None,
    ) -> None:
        super().__init__()
        self.in_shape = shape_tuple(in_shape)
        self.out_features, self.latent = out_features, latent
        size = math.prod(self.in_shape)
        if tied and (out_features != size or self.codes > 1):
            raise UserError(
                f"network.tied=true: needs a plain auto-encoder with as many outputs as inputs; here {size} inputs and "
                f"{out_features} outputs"
            )
        widths = [size, *hidden]
        layers: list[nn.Module] = []
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(narrow, wide), activation_module(activation)]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.encoder = nn.Sequential(*layers, nn.Linear(widths[-1], self.codes * latent))
        back = [layer for layer in self.encoder if isinstance(layer, nn.Linear)][::-1]
        widths = [latent, *reversed(hidden), out_features]
        layers = []
        for index, (narrow, wide) in enumerate(zip(widths, widths[1:], strict=False)):
            layers.append(Transposed(back[index]) if tied else nn.Linear(narrow, wide))
            layers.append(activation_module(activation))
        self.decoder = nn.Sequential(*layers[:-2])
        self.head = layers[-2]
        if tied:
            initialise(self.encoder, nn.Linear(1, 1), activation, init, None, gain)
        else:
            head = cast(nn.Linear, self.head)  # it is tied to another layer otherwise
            initialise(nn.ModuleList([self.encoder, self.decoder]), head, activation, init, last_gain, gain)

    def encode(self, x: Tensor) -> Tensor:
        """The code: float [..., *in_shape] → float [..., latent]."""
        return self.encoder(x.flatten(-len(self.in_shape)))

    def decode(self, code: Tensor) -> Tensor:
        """What a code stands for: float [..., latent] → float [..., out_features]."""
        return self.head(self.decoder(code))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class VAE(AutoEncoder):
    """Variational auto-encoder (Kingma and Welling 2014): a Gaussian code q(z|x) with diagonal deviation.

    forward: float [..., *in_shape] → float [..., out_features + 2·latent]: the reconstruction (logits for a Bernoulli
    likelihood), then mean and log-variance of the code, as `marl.losses.ELBO` reads them. While training the code is
    drawn, z = mean + deviation·ε; in evaluation it is the mean. Raises UserError unless it has as many outputs as
    inputs: it reconstructs, and is no body for agents or classifiers (`network=autoencoder` is).
    """

    codes = 2

    def __init__(
        self,
        in_shape: Shape,
        out_features: Width,
        hidden: Sequence[Width] = (128,),
        latent: Width = 16,
        activation: ActivationName = "relu",
        dropout: Probability = 0.0,
        init: Init = "default",
        last_gain: Gain | None = None,
        gain: Gain | None = None,
    ) -> None:
        if out_features != math.prod(shape_tuple(in_shape)):
            raise UserError(
                f"network=vae: reconstructs its {math.prod(shape_tuple(in_shape))} inputs and cannot have "
                f"{out_features} outputs; use network=autoencoder, or data that are their own target"
            )
        super().__init__(in_shape, out_features, hidden, latent, activation, False, dropout, init, last_gain, gain)

    def encode(self, x: Tensor) -> Tensor:
        """The code's mean: float [..., *in_shape] → float [..., latent]."""
        return super().encode(x).chunk(2, -1)[0]

    def forward(self, x: Tensor) -> Tensor:
        code = AutoEncoder.encode(self, x)
        mean, log_variance = code.chunk(2, -1)
        drawn = mean + (log_variance / 2).exp() * torch.randn_like(mean) if self.training else mean
        return torch.cat([self.decode(drawn), code], -1)
