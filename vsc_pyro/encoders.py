"""Encoders: modules whose forward takes data x and returns the posterior q(z | x), a distribution.

An encoder of your own is any `torch.nn.Module` that does the same, with an attribute `input_shape` (the shape of one
datum) if `vsc_pyro.VAE` is to check at construction that encoder, decoder and prior fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor, nn

from vsc_pyro.arguments import positive_int, sizes
from vsc_pyro.distributions import IndependentSpikeSlab, SpikeSlab
from vsc_pyro.gates import Gate, get_gate
from vsc_pyro.networks import MLP

# Keeps the log-density finite however sure the network is.
_MIN_SCALE = 1e-4


class _MLPEncoder(nn.Module):
    """An MLP with `num_heads` outputs for each latent, on the flattened datum."""

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        num_heads: int,
        hidden: int | Sequence[int],
        activation: str,
    ) -> None:
        super().__init__()
        self.input_shape = sizes("input_shape", input_shape)
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.num_heads = num_heads
        self.network = MLP(math.prod(self.input_shape), num_heads * self.latent_dim, hidden, activation)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.network(x.flatten(1)).chunk(self.num_heads, -1)


def _normal(loc: Tensor, log_variance: Tensor) -> Normal:
    return Normal(loc, torch.exp(0.5 * log_variance) + _MIN_SCALE)


class NormalEncoder(_MLPEncoder):
    r"""Gaussian posterior, :math:`q(z|x) = \prod_j N(z_j; \mu_j(x), \sigma_j(x)^2)` (Kingma & Welling, 2014).

    Args:
        input_shape: shape of one datum, or its number of pixels; data are flattened.
        latent_dim: number of latents J.
        hidden: widths of the hidden layers.
        activation: name of the activation, see `vsc_pyro.networks.ACTIVATIONS`.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: a size below 1, or an unknown activation or gate (the message lists the known ones).
    """

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        hidden: int | Sequence[int] = (400,),
        activation: str = "silu",
    ) -> None:
        super().__init__(input_shape, latent_dim, 2, hidden, activation)

    def forward(self, x: Tensor) -> Independent:
        return _normal(*self.heads(x)).to_event(1)


class SpikeSlabEncoder(_MLPEncoder):
    r"""Spike-and-slab posterior, :math:`q(z|x) = \prod_j \gamma_j N(z_j; \mu_j, \sigma_j^2) + (1-\gamma_j) \delta_0`.

    One network gives location, scale and the log-odds of the inclusion probability of every latent (Tonolini et al.,
    2020, use the logarithm of a probability clipped at one, which has no gradient once a gate is fully on).

    In training mode spikes are drawn by the gate as it is; in evaluation mode (`.eval()`) always exactly.

    Args:
        input_shape: shape of one datum, or its number of pixels; data are flattened.
        latent_dim: number of latents J.
        hidden: widths of the hidden layers.
        activation: name of the activation, see `vsc_pyro.networks.ACTIVATIONS`.
        gate: gradient estimator of the spikes, a name or a `vsc_pyro.gates.Gate`.
        initial_inclusion: inclusion probability that every latent starts from, strictly between 0 and 1.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: a size below 1, or an unknown activation or gate (the message lists the known ones).
    """

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        hidden: int | Sequence[int] = (400,),
        activation: str = "silu",
        gate: str | Gate = "concrete",
        initial_inclusion: float = 0.1,
    ) -> None:
        super().__init__(input_shape, latent_dim, 3, hidden, activation)
        self.gate = get_gate(gate)
        if not 0 < initial_inclusion < 1:
            raise ValueError(f"initial_inclusion must lie strictly between 0 and 1, got {initial_inclusion!r}")
        with torch.no_grad():
            logits_bias = self.network[-1].bias[2 * self.latent_dim :]
            logits_bias += math.log(initial_inclusion / (1 - initial_inclusion))

    def forward(self, x: Tensor) -> IndependentSpikeSlab:
        loc, log_variance, logits = self.heads(x)
        gate = self.gate if self.training else self.gate.hardened()
        return SpikeSlab(_normal(loc, log_variance), logits=logits, gate=gate).to_event(1)

    def extra_repr(self) -> str:
        return f"gate={self.gate!r}"
