"""Decoders: modules whose forward takes codes z and returns the likelihood p(x | z), a distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyro.distributions import Bernoulli, Independent
from torch import Tensor, nn
from torch.distributions import constraints

from vsc_pyro.arguments import positive_int, sizes
from vsc_pyro.networks import MLP


class CrossEntropyBernoulli(Bernoulli):
    r"""Bernoulli whose `log_prob` also takes grey levels, :math:`x \log p + (1 - x) \log(1 - p)` for x in [0, 1].

    On binary pixels it is the Bernoulli likelihood; on grey ones a cross-entropy, which is *not* a likelihood (it does
    not integrate to one), though published figures often call it so. Draws are binary.
    """

    support = constraints.unit_interval


class BernoulliDecoder(nn.Module):
    r"""Independent Bernoulli pixels, :math:`p(x|z) = \prod_d \mathrm{Bern}(x_d; \mathrm{sigmoid}(f_d(z)))`, f an MLP.

    Args:
        latent_dim: number of latents J.
        output_shape: shape of one datum, or its number of pixels.
        hidden: widths of the hidden layers.
        activation: name of the activation, see `vsc_pyro.networks.ACTIVATIONS`.

    Shapes:
        z ``(*, J)``; the distribution has `batch_shape` ``(*)`` and `event_shape` `output_shape`. Data must lie in
        [0, 1], see `CrossEntropyBernoulli` for values in between.

    Raises:
        ValueError: a size below 1, or an unknown activation (the message lists the known ones).
    """

    def __init__(
        self,
        latent_dim: int,
        output_shape: int | Sequence[int],
        hidden: int | Sequence[int] = (400,),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.output_shape = sizes("output_shape", output_shape)
        self.network = MLP(latent_dim, math.prod(self.output_shape), hidden, activation)

    def forward(self, z: Tensor) -> Independent:
        logits = self.network(z).unflatten(-1, self.output_shape)
        return CrossEntropyBernoulli(logits=logits).to_event(len(self.output_shape))
