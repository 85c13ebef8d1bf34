"""The spike-and-slab encoder with one linear pre-activation for each latent: a JumpReLU with a posterior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from vsc_pyro.distributions import centre
from vsc_pyro.gates import Gate
from vsc_pyro.models.encoders.spike_slab import SpikeSlabEncoder

# A prior inclusion near 1/2 would start without a slope, so the inclusion would not depend on the data.
_LEAST_SLOPE = 1.0


class JumpReLUEncoder(SpikeSlabEncoder):
    r"""Spike-and-slab posterior from one linear pre-activation for each latent, whose hard code is a JumpReLU.

    .. math:: u_j = w_j \cdot x + c_j, \qquad
        q(z|x) = \prod_j \gamma_j F(z_j; u_j, \sigma_j) + (1-\gamma_j) \delta_0, \qquad
        \mathrm{logit}\, \gamma_j = a_j (u_j - \theta_j).

    The slope :math:`a_j > 0`, the threshold :math:`\theta_j \ge 0` and the scale :math:`\sigma_j` are parameters of the
    latent, common to all data (the first two as logarithms). The network is one matrix of J rows, where a
    `SpikeSlabEncoder` with ``hidden=()`` has three. For a slab centred at its location, the hard code is
    :math:`u_j` where :math:`u_j > \theta_j` and else 0, the JumpReLU of Rajamanoharan et al. (2024), and
    `vsc_pyro.sae.export` writes it for the programs that read one. Codes are positive: a latent that the prior wants
    negative stays off. Pass ``learn_slab=True`` to the prior, or a positive slab.

    The threshold starts at 1. The other parameters start so that :math:`u_j \approx 0` has the prior's inclusion, or,
    if that exceeds 1 / (1 + e), a larger :math:`u_j`. Gates, slab warm-up and evaluation mode are those of
    `SpikeSlabEncoder`.

    Args:
        input_shape: shape of one datum, or its number of pixels; data are flattened.
        latent_dim: number of latents J.
        gate, initial_inclusion, slab: see `SpikeSlabEncoder`.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: as `SpikeSlabEncoder`.

    References:
        S. Rajamanoharan et al. (2024), Jumping ahead: improving reconstruction fidelity with JumpReLU sparse
        autoencoders.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> encoder = vsc.JumpReLUEncoder(64, latent_dim=8, initial_inclusion=0.2)
        >>> encoder(torch.rand(5, 64)).event_shape, encoder.jump_thresholds[:2].tolist()
        (torch.Size([8]), [1.0, 1.0])
    """

    heads_by_scale: ClassVar[dict[str, int]] = {"per-latent": 1}

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        gate: str | Gate = "concrete",
        initial_inclusion: float | None = None,
        slab: str = "normal",
    ) -> None:
        options = {"gate": gate, "initial_inclusion": initial_inclusion, "slab": slab, "scale": "per-latent"}
        super().__init__(input_shape, latent_dim, (), **options)

    def _start_inclusion(self, inclusion: float | None) -> None:
        self.log_slope = nn.Parameter(torch.zeros(self.latent_dim))
        self.log_threshold = nn.Parameter(torch.zeros(self.latent_dim))
        super()._start_inclusion(inclusion)

    @torch.no_grad()
    def _set_inclusion(self, inclusion: Tensor) -> None:
        logits = torch.logit(inclusion).to(self.log_slope)
        slope = logits.abs().clamp(min=_LEAST_SLOPE)
        self.log_slope.copy_(slope.log())
        # The pre-activation at the data's mean.
        self.own_layer.bias.copy_(self.log_threshold.exp() + logits / slope)

    @property
    def jump_thresholds(self) -> Tensor | None:
        r"""The thresholds :math:`\theta` of the hard code as a JumpReLU of the head, shape ``(J,)``.

        None for a slab whose centre is not its location.
        """
        location = torch.linspace(-1, 1, self.latent_dim).to(self.log_threshold)
        is_centred = torch.equal(centre(self._family(location, torch.ones_like(location))), location)
        return self.log_threshold.detach().exp() if is_centred else None

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        (u,) = super().heads(x)
        logits = self.log_slope.exp() * (u - self.log_threshold.exp())
        return u, logits
