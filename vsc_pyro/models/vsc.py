"""The published Variational Sparse Coding model, built from this library's parts."""

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
    r"""Variational sparse coding (Tonolini et al., 2020): spike-and-slab codes, a learned pseudo-input prior.

    Three defaults differ from the paper; an argument restores each published choice:

    * Spikes are hard in training. Published: soft ones, ``gate="shifted-sigmoid"``.
    * The objective charges for the assignment to a pseudo-input, which makes it a bound. Published: no charge,
      ``assignment="paper"``.
    * The sparsity term is added once for each datum. Published: once for all N data, ``sparsity_weight=1 / N``, which
      is negligible beside N bounds.

    Train it with ``fit(..., schedules=vsc_pyro.schedules.slab_warmup(num_steps))``, where `num_steps` is the number of
    steps of the whole run.

    Args:
        input_shape: shape of one datum, or its number of pixels.
        latent_dim: number of latents J.
        inclusion: :math:`\alpha`, the target share of latents that are on.
        num_pseudo_inputs: number of pseudo-inputs U.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse order.
        gate: gradient estimator of the spikes, a name or a `vsc_pyro.gates.Gate`.
        sparsity_weight, assignment: see `vsc_pyro.PseudoInputPrior`.
        decoder: replaces the `vsc_pyro.BernoulliDecoder`.
        beta: weight of the codes' KL divergence.

    Raises:
        ValueError: an argument that one of the parts refuses.

    >>> import torch, vsc_pyro as vsc
    >>> model = vsc.VSC((1, 8, 8), latent_dim=10, num_pseudo_inputs=4)
    >>> z = model.encoder(torch.rand(3, 1, 8, 8)).sample()
    >>> z.shape, model.decoder(z).mean.shape
    (torch.Size([3, 10]), torch.Size([3, 1, 8, 8]))
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
