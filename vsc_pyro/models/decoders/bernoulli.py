"""The Bernoulli likelihood, for binary pixels."""

from __future__ import annotations

import torch
from pyro.distributions import Bernoulli, Independent
from torch import Tensor
from torch.distributions import constraints

from vsc_pyro.models.decoders.base import PixelDecoder


class CrossEntropyBernoulli(Bernoulli):
    r"""Bernoulli whose `log_prob` also takes grey levels, :math:`x \log p + (1 - x) \log(1 - p)` for x in [0, 1].

    On binary pixels it is the Bernoulli likelihood; on grey ones a cross-entropy, which is *not* a likelihood (it does
    not integrate to one), though published figures often call it so. Draws are binary.
    """

    support = constraints.unit_interval


class BernoulliDecoder(PixelDecoder):
    r"""Independent Bernoulli pixels, :math:`p(x|z) = \prod_d \mathrm{Bern}(x_d; \mathrm{sigmoid}(f_d(z)))`.

    f is an MLP, or a linear layer, an activation and a trunk such as `vsc_pyro.models.networks.DeconvTrunk`.

    Args:
        latent_dim: number of latents J.
        output_shape: shape of one datum, or its number of pixels.
        hidden: widths of the MLP's hidden layers, ``()`` for a linear map; None for ``(400,)``.
        activation: name of the activation, see `vsc_pyro.models.networks.ACTIVATIONS`.
        trunk: module from ``(*, trunk.in_features)`` to ``(*, *output_shape)``, instead of the MLP.

    Shapes:
        z ``(*, J)``; the distribution has `batch_shape` ``(*)`` and `event_shape` `output_shape`. Data must lie in
        [0, 1], see `CrossEntropyBernoulli` for values in between.

    Raises:
        ValueError: a size below 1, an unknown activation (the message lists the known ones), `hidden` beside a trunk,
            or a trunk whose output does not fit `output_shape`.
    """

    def _outputs_of(self, mean: Tensor, scale: Tensor, num_data: int) -> Tensor:
        return torch.logit((mean * num_data + 0.5) / (num_data + 1))

    def forward(self, z: Tensor) -> Independent:
        return CrossEntropyBernoulli(logits=self.pixels(z)).to_event(len(self.output_shape))
