"""The spike-and-slab encoder, and the base class of encoders of spikes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vsc_pyro._arguments import choice
from vsc_pyro.distributions import IndependentSpikeSlab, SpikeSlab, get_slab
from vsc_pyro.gates import Gate, get_gate
from vsc_pyro.models.encoders.base import Encoder, positive_scale

if TYPE_CHECKING:
    from jaxtyping import Float

# Initial inclusion of latents whose prior has none.
_DEFAULT_INCLUSION = 0.1


def gate_of(encoder: nn.Module) -> Gate | None:
    """Return the gate of an encoder, or None if it has no attribute `gate` of class `Gate`."""
    gate = getattr(encoder, "gate", None)
    return gate if isinstance(gate, Gate) else None


def _inclusion(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value!r}")
    return value


class SparseEncoder(Encoder):
    """An encoder of spikes. The bias of its inclusion head sets the initial inclusion probability of every latent."""

    gate: Gate
    offset: Tensor

    def _start_inclusion(self, inclusion: float | None) -> None:
        self.follows_prior = inclusion is None
        inclusion = _DEFAULT_INCLUSION if inclusion is None else _inclusion("initial_inclusion", inclusion)
        self._set_inclusion(torch.full((self.latent_dim,), inclusion))

    def follow(self, inclusion: Tensor) -> None:
        """Start from a prior's inclusion probabilities, shape ``(J,)``.

        Nothing changes if `initial_inclusion` was passed or the encoder has been trained.
        """
        if self.follows_prior and self.is_fresh:
            self._set_inclusion(inclusion)

    @torch.no_grad()
    def _set_inclusion(self, inclusion: Tensor) -> None:
        offset = self._offset(inclusion).to(self._inclusion_bias)
        self._inclusion_bias.add_(offset - self.offset if hasattr(self, "offset") else offset)
        self.register_buffer("offset", offset, persistent=False)

    @property
    def _inclusion_bias(self) -> Tensor:
        return self.own_layer.bias[(self.num_heads - 1) * self.latent_dim :]

    def _offset(self, inclusion: Tensor) -> Tensor:
        """Return the bias of the inclusion head that gives these inclusion probabilities."""
        raise NotImplementedError


class SpikeSlabEncoder(SparseEncoder):
    r"""Spike-and-slab posterior, :math:`q(z|x) = \prod_j \gamma_j F(z_j; \mu_j, \sigma_j) + (1-\gamma_j) \delta_0`.

    One network returns the location, the scale and the log-odds of inclusion of every latent. (Tonolini et al., 2020,
    use the logarithm of a probability clipped at one, which has no gradient once a spike is certainly on.)

    In training mode the gate draws spikes, possibly soft ones. In evaluation mode (`.eval()`) spikes are exact.

    **Slab warm-up** (Tonolini et al., 2020). The slab is :math:`F(\lambda\mu, \sqrt{\lambda\sigma^2 + 1 - \lambda})`,
    where :math:`\lambda` is the buffer `slab_weight`: the standard slab at 0, the network's slab at 1 (the default).
    ``fit(..., schedules=vsc_pyro.schedules.slab_warmup(num_steps))`` moves it. The KL divergence is taken from the same
    slab, so every step trains a bound. The standard slab is that of location 0 and scale 1, see `slab`.

    Args:
        input_shape: shape of one datum, or its number of pixels; data are flattened.
        latent_dim: number of latents J.
        hidden: widths of the MLP's hidden layers; None for ``(400,)``.
        activation: name of the activation, see `vsc_pyro.models.networks.ACTIVATIONS`.
        gate: gradient estimator of the spikes: a name, or a `vsc_pyro.gates.Gate`, which is copied.
        initial_inclusion: inclusion probability of every latent before training, strictly between 0 and 1. None for the
            inclusion of the prior, which `vsc_pyro.VAE` passes on, or .1 if the prior has none.
        slab: family F, a row of the first table of `SpikeSlabPrior` that has a location: ``"normal"``, ``"laplace"``,
            ``"cauchy"``; or one of positive numbers, ``"truncated-normal"``, ``"log-normal"`` or ``"gamma"``. A prior
            of positive slabs needs a posterior of positive slabs. A Cauchy slab needs a Cauchy slab in the prior and a
            decoder that saturates, see `CauchyEncoder`.
        trunk: a network that replaces the MLP, see `NormalEncoder`.
        scale: ``"amortised"`` for a :math:`\sigma` from the network; ``"per-latent"`` for one parameter of each latent,
            common to all data, which saves a third of a linear network.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: a size below 1, an initial inclusion outside (0, 1), an unknown activation, gate, slab or scale (the
            message lists the known ones), or a slab without location.

    References:
        F. Tonolini, B. S. Jensen, R. Murray-Smith (2020), Variational sparse coding.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> encoder = vsc.SpikeSlabEncoder(784, latent_dim=50, gate="straight-through", initial_inclusion=0.2)
        >>> codes = encoder(torch.rand(8, 784)).sample()
        >>> codes.shape, bool((codes == 0).any())
        (torch.Size([8, 50]), True)
    """

    slab_weight: Tensor
    heads_by_scale: ClassVar[dict[str, int]] = {"amortised": 3, "per-latent": 2}

    get_gate = staticmethod(get_gate)

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        hidden: int | Sequence[int] | None = None,
        activation: str = "silu",
        gate: str | Gate = "concrete",
        initial_inclusion: float | None = None,
        slab: str = "normal",
        trunk: nn.Module | None = None,
        scale: str = "amortised",
    ) -> None:
        num_heads = choice("scale", scale, self.heads_by_scale)
        super().__init__(input_shape, latent_dim, num_heads, hidden, activation, trunk)
        self.gate = copy.deepcopy(self.get_gate(gate))  # schedules of this model must not move another one's gate
        self.slab = slab
        self._family: Any = get_slab(slab)
        if not getattr(self._family, "has_loc", True):
            raise ValueError(
                f"slab must have a location and a scale, for the network to set both, and {slab!r} has a scale only; "
                f"use slab='truncated-normal', whose divergence from a prior of slab={slab!r} is closed"
            )
        self.register_buffer("slab_weight", torch.ones(()))
        self.scale = scale
        if scale == "per-latent":
            self.log_squared_scale = nn.Parameter(torch.zeros(self.latent_dim))
        self._start_inclusion(initial_inclusion)

    def _offset(self, inclusion: Tensor) -> Tensor:
        return torch.logit(inclusion)

    def forward(self, x: Float[Tensor, "batch ..."]) -> IndependentSpikeSlab:
        return self._posterior(*self._inferred(x))

    def _inferred(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-odds and locations ``(B, J)``, and scales ``(B, J)`` or ``(J,)``."""
        loc, *amortised, logits = self.heads(x)
        (log_squared_scale,) = amortised or (self.log_squared_scale,)
        weight = self.slab_weight
        squared = positive_scale(log_squared_scale).square()
        scale = torch.addcmul(1 - weight, weight, squared).sqrt()
        return logits, weight * loc, scale

    def _posterior(self, logits: Tensor, loc: Tensor, scale: Tensor) -> IndependentSpikeSlab:
        gate = self.gate if self.training else self.gate.hardened()
        return SpikeSlab(self._family(loc, scale), logits=logits, gate=gate).to_event(1)

    def extra_repr(self) -> str:
        return f"slab={self.slab!r}" + ("" if self.scale == "amortised" else f", scale={self.scale!r}")
