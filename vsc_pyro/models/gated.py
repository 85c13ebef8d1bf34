"""The network of gated linear units."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from vsc_pyro._arguments import positive_int, sizes
from vsc_pyro._recorded import Recorded
from vsc_pyro.models.networks import initialize


class GatedTrunk(Recorded):
    r"""Network of gated linear units (Dauphin et al., 2017), to features or, with `output_shape`, from them to data.

    .. math:: h = (W x + b) \odot \mathrm{sigmoid}(V x + c)

    A linear layer follows the gated ones if there is an `output_shape`. Encoders and decoders put no activation beside
    this trunk. Weights are initialised as in He et al. (2015). Tomczak & Welling (2018) took these layers and widths.

    Args:
        in_features: number of values of a datum for an encoder; width of the layer in front of it for a decoder.
        hidden: widths of the gated layers, first to last.
        output_shape: for a decoder, the shape of one datum; None for an encoder.

    Shapes:
        ``(B, ...)`` of `in_features` values ``-> (B, hidden[-1])``; with `output_shape`, any number of leading
        dimensions, ``(*, in_features) -> (*, *output_shape)``.

    Raises:
        ValueError: a size below 1, or no gated layer.

    References:
        Y. N. Dauphin, A. Fan, M. Auli, D. Grangier (2017), Language modeling with gated convolutional networks.
        J. M. Tomczak, M. Welling (2018), VAE with a VampPrior.

    >>> import torch, vsc_pyro as vsc
    >>> encoder = vsc.NormalEncoder((1, 28, 28), 40, trunk=vsc.GatedTrunk(784))
    >>> decoder = vsc.BernoulliDecoder(40, (1, 28, 28), trunk=vsc.GatedTrunk(40, output_shape=(1, 28, 28)))
    >>> decoder(encoder(torch.zeros(2, 1, 28, 28)).mean).event_shape
    torch.Size([1, 28, 28])
    """

    has_activations = True

    def __init__(
        self,
        in_features: int,
        hidden: int | Sequence[int] = (300, 300),
        output_shape: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.in_features = positive_int("in_features", in_features)
        widths = sizes("hidden", hidden)
        if not widths:
            raise ValueError("hidden must have the width of one gated layer at least, got none")
        if output_shape is None:  # an encoder refuses a trunk without it
            self.out_features = widths[-1]
        self.output_shape = None if output_shape is None else sizes("output_shape", output_shape)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((self.in_features, *widths)):
            layers += [nn.Linear(before, 2 * after), nn.GLU()]
        if self.output_shape is not None:
            layers.append(nn.Linear(widths[-1], math.prod(self.output_shape)))
        self.layers = nn.Sequential(*layers)
        self.layers.apply(initialize)

    def forward(self, x: Tensor) -> Tensor:
        if self.output_shape is None:
            return self.layers(x.flatten(1))
        return self.layers(x).unflatten(-1, self.output_shape)
