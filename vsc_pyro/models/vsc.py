"""`VSC`: the published model, put together from this library's parts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vsc_pyro._arguments import sizes
from vsc_pyro.gates import Gate
from vsc_pyro.models.decoders import BernoulliDecoder
from vsc_pyro.models.encoders import SpikeSlabEncoder
from vsc_pyro.models.networks import DEFAULT_HIDDEN
from vsc_pyro.models.priors import PseudoInputPrior
from vsc_pyro.models.vae import VAE


class VSC(VAE):
    r"""Variational sparse coding (Tonolini et al., 2020): spike-and-slab codes under a learned pseudo-input prior.

    The paper's model from this library's parts. Three things are as they should be rather than as published, each to be
    had as it was by an argument: spikes are hard in training (``gate="shifted-sigmoid"`` for the soft ones), the
    assignment to a pseudo-input is paid for, so that the objective is a bound (``assignment="paper"``), and the
    sparsity term weighs on every datum (``sparsity_weight=1 / N`` for one term on all N data, as published, which is
    next to nothing beside N bounds: on 1,437 digits with 50 latents and alpha = .01, 11.4 are on per image under it,
    14.0 without a term, and 0.9 under the default). Train it with
    ``fit(..., schedules=vsc_pyro.schedules.slab_warmup(num_steps))``, num_steps being those of the whole run.

    Args:
        input_shape: shape of one datum, or its number of pixels.
        latent_dim: number of latents J.
        inclusion: :math:`\alpha`, the share of latents that are to be on.
        num_pseudo_inputs: U.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        gate: gradient estimator of the spikes.
        sparsity_weight, assignment: of the `vsc_pyro.PseudoInputPrior`.
        decoder: instead of a `vsc_pyro.BernoulliDecoder`.
        beta: weight of the KL divergence of codes.

    Raises:
        ValueError: as its parts.
    """

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int = 50,
        inclusion: float = 0.01,
        num_pseudo_inputs: int = 20,
        *,
        hidden: int | Sequence[int] = DEFAULT_HIDDEN,
        gate: str | Gate = "concrete",
        sparsity_weight: float = 1.0,
        assignment: str = "bound",
        decoder: nn.Module | None = None,
        beta: float = 1.0,
    ) -> None:
        hidden = sizes("hidden", hidden)
        encoder = SpikeSlabEncoder(input_shape, latent_dim, hidden, gate=gate)
        target = inclusion if sparsity_weight else None
        prior = PseudoInputPrior(encoder, num_pseudo_inputs, target, sparsity_weight, assignment)
        if decoder is None:
            decoder = BernoulliDecoder(latent_dim, input_shape, hidden[::-1])
        super().__init__(encoder, decoder, prior, beta)
