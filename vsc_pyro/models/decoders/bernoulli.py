"""The Bernoulli likelihood, for binary pixels."""

from __future__ import annotations

import torch
from pyro.distributions import Bernoulli  # pyright: ignore[reportAttributeAccessIssue]  Pyro defines it at import
from torch import Tensor
from torch.distributions import constraints

from vsc_pyro.models.decoders.base import PixelDecoder


class CrossEntropyBernoulli(Bernoulli):
    r"""Bernoulli whose `log_prob` also takes grey levels, :math:`x \log p + (1 - x) \log(1 - p)` for x in [0, 1].

    On binary pixels it is the Bernoulli likelihood. On grey ones it is a cross-entropy, which is *not* a likelihood (it
    does not integrate to one), although published figures often call it so. Draws are binary.
    """

    support = constraints.unit_interval


class BernoulliDecoder(PixelDecoder):
    r"""Independent Bernoulli pixels, :math:`p(x|z) = \prod_d \mathrm{Bern}(x_d; \mathrm{sigmoid}(f_d(z)))`.

    The network f is an MLP, or a linear layer, an activation and a trunk such as `vsc_pyro.DeconvTrunk`.

    Args:
        latent_dim: number of latents J.
        output_shape: shape of one datum, or its number of pixels.
        hidden: widths of the MLP's hidden layers, ``()`` for a linear map; None for ``(400,)``.
        activation: name of the activation, see `vsc_pyro.models.networks.ACTIVATIONS`.
        trunk: replaces the MLP; a module from ``(*, trunk.in_features)`` to ``(*, *output_shape)``.
        num_covariates: number K of columns behind the values of a row, whose effects are added to the logits, see
            `NormalDecoder`; then `output_shape` is the number D of values. Zeros and ones cannot be rescaled, so R2 and
            the share of cross-entropy include what the covariates explain.

    Shapes:
        z ``(*, J)``; the distribution has `batch_shape` ``(*)`` and `event_shape` `output_shape`, or ``(D + K,)``. Data
        must lie in [0, 1], see `vsc_pyro.models.decoders.CrossEntropyBernoulli` for values in between.

    Raises:
        ValueError: a size below 1, covariates of data of several dimensions, an unknown activation (the message lists
            the known ones), both `hidden` and a trunk, or a trunk whose output does not fit `output_shape`.

    >>> import vsc_pyro as vsc
    >>> decoder = vsc.BernoulliDecoder(latent_dim=5, output_shape=(1, 8, 8))
    >>> decoder(torch.zeros(3, 5)).log_prob(torch.ones(3, 1, 8, 8)).shape
    torch.Size([3])
    """

    def _outputs_of(self, mean: Tensor, scale: Tensor, num_data: int) -> Tensor:
        return torch.logit((mean * num_data + 0.5) / (num_data + 1))

    def _likelihood(self, outputs: Tensor) -> CrossEntropyBernoulli:
        return CrossEntropyBernoulli(logits=outputs)
