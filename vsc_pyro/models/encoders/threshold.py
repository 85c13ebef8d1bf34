"""The encoder of spikes by a learned threshold."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import (
    Laplace,  # pyright: ignore[reportAttributeAccessIssue] created when Pyro is imported
    Normal,
    TorchDistribution,
)
from torch import Tensor, nn
from torch.nn.functional import softplus

from vsc_pyro._arguments import choice
from vsc_pyro.distributions import IndependentSpikeSlab, ThresholdedSpikeSlab, get_threshold_gate
from vsc_pyro.gates import Gate
from vsc_pyro.models.encoders.base import positive_scale
from vsc_pyro.models.encoders.spike_slab import SparseEncoder

if TYPE_CHECKING:
    from jaxtyping import Float

# Keeps an inclusion probability below one.
_MIN_THRESHOLD = 1e-6


_BASES: dict[str, type[TorchDistribution]] = {"laplace": Laplace, "normal": Normal}
_THRESHOLDS = {"amortised": 3, "per-latent": 2}  # number of heads of the network


class ThresholdEncoder(SparseEncoder):
    r"""Spike-and-slab posterior by a learned shifted soft threshold of a draw (Fallah & Rozell, 2022).

    .. math:: \zeta \sim \mathrm{base}(\mu, \sigma), \qquad
        z = \mu + \mathrm{sign}(\zeta - \mu)(|\zeta - \mu| - \lambda) \;\text{where}\; |\zeta - \mu| > \lambda,
        \;\text{else}\; 0.

    Scale and threshold determine the inclusion probability: :math:`e^{-\lambda / \sigma}` with a Laplace base,
    :math:`2\,\Phi(-\lambda / \sigma)` with a Normal base. The KL divergence is the exact one of the code, see
    `vsc_pyro.distributions.thresholded`. The published objective uses the divergence of the draw before the threshold
    instead, and is no bound. There is no slab warm-up.

    Args:
        input_shape, latent_dim, hidden, activation, trunk: see `NormalEncoder`.
        gate: gradient estimator of the spikes, a name or a `vsc_pyro.gates.Gate`. ``"threshold"`` is the published one:
            it passes the gradient of the draw before the threshold, even if the code is 0. This gradient ignores the
            jump from 0 to :math:`\mu`; under a KL that charges for spikes, all codes collapse to zero.
        initial_inclusion: inclusion probability of every latent before training, strictly between 0 and 1. None for the
            inclusion of the prior, which `vsc_pyro.VAE` passes on, or .1 if the prior has none.
        base: ``"laplace"`` or ``"normal"``.
        threshold: ``"amortised"`` for a :math:`\lambda` from the network; ``"per-latent"`` for one parameter of each
            latent, common to all data, so that the inclusion of data differs by their scales only.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: a size below 1, an initial inclusion outside (0, 1), or an unknown activation, gate, base or
            threshold (the message lists the known ones).

    References:
        K. Fallah, C. J. Rozell (2022), Variational sparse coding with learned thresholding.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> encoder = vsc.ThresholdEncoder(64, latent_dim=8, base="normal", initial_inclusion=0.3)
        >>> encoder(torch.rand(5, 64)).event_shape
        torch.Size([8])
    """

    get_gate = staticmethod(get_threshold_gate)

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        hidden: int | Sequence[int] | None = None,
        activation: str = "silu",
        gate: str | Gate = "concrete",
        initial_inclusion: float | None = None,
        base: str = "laplace",
        threshold: str = "amortised",
        trunk: nn.Module | None = None,
    ) -> None:
        num_heads = choice("threshold", threshold, _THRESHOLDS)
        super().__init__(input_shape, latent_dim, num_heads, hidden, activation, trunk)
        self.gate = copy.deepcopy(self.get_gate(gate))  # schedules of this model must not move another one's gate
        self.base = base
        self.threshold = threshold
        self._family: Any = choice("base", base, _BASES)
        if threshold == "per-latent":
            self.unconstrained_threshold = nn.Parameter(torch.zeros(self.latent_dim))
        self._start_inclusion(initial_inclusion)

    @property
    def _inclusion_bias(self) -> Tensor:
        return self.unconstrained_threshold if self.threshold == "per-latent" else super()._inclusion_bias

    def _offset(self, inclusion: Tensor) -> Tensor:
        # Scales start near 1, so the two tails of the standard base beyond this quantile hold the inclusion.
        start = -self._family(0.0, 1.0).icdf(inclusion / 2)
        return start + torch.log(-torch.expm1(-start))  # the inverse of softplus

    def forward(self, x: Float[Tensor, "batch ..."]) -> IndependentSpikeSlab:
        loc, log_squared_scale, *amortised = self.heads(x)
        (unconstrained,) = amortised or (self.unconstrained_threshold,)
        gate = self.gate if self.training else self.gate.hardened()
        base = self._family(loc, positive_scale(log_squared_scale))
        return ThresholdedSpikeSlab(base, softplus(unconstrained) + _MIN_THRESHOLD, gate).to_event(1)

    def extra_repr(self) -> str:
        return f"base={self.base!r}, threshold={self.threshold!r}"
