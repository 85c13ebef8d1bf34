"""Encoders without spikes: Normal, Laplace, Cauchy, and a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro.distributions import (
    Cauchy,  # pyright: ignore[reportAttributeAccessIssue] created when Pyro is imported
    Delta,
    Independent,
    Laplace,  # pyright: ignore[reportAttributeAccessIssue] created when Pyro is imported
    Normal,
)
from torch import Tensor, nn

from vsc_pyro.models.encoders.base import Encoder, positive_scale

if TYPE_CHECKING:
    from jaxtyping import Float


class _LocationScaleEncoder(Encoder):
    family: ClassVar[Any]

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        hidden: int | Sequence[int] | None = None,
        activation: str = "silu",
        trunk: nn.Module | None = None,
    ) -> None:
        super().__init__(input_shape, latent_dim, 2, hidden, activation, trunk)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Independent:
        loc, log_squared_scale = self.heads(x)
        return self.family(loc, positive_scale(log_squared_scale)).to_event(1)


class NormalEncoder(_LocationScaleEncoder):
    r"""Gaussian posterior, :math:`q(z|x) = \prod_j N(z_j; \mu_j(x), \sigma_j(x)^2)` (Kingma & Welling, 2014).

    Args:
        input_shape: shape of one datum, or its number of pixels; data are flattened.
        latent_dim: number of latents J.
        hidden: widths of the MLP's hidden layers; None for ``(400,)``.
        activation: name of the activation, see `vsc_pyro.models.networks.ACTIVATIONS`.
        trunk: a network that replaces the MLP, x ``(B, *input_shape)`` -> features ``(B, out_features)``, with an
            attribute `out_features`, such as `vsc_pyro.ConvTrunk`.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: a size below 1, an unknown activation (the message lists the known ones), or both `hidden` and
            `trunk`.

    References:
        D. P. Kingma, M. Welling (2014), Auto-encoding variational Bayes.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> posterior = vsc.NormalEncoder((1, 28, 28), latent_dim=50)(torch.rand(8, 1, 28, 28))
        >>> posterior.batch_shape, posterior.event_shape
        (torch.Size([8]), torch.Size([50]))
    """

    family = Normal


class LaplaceEncoder(_LocationScaleEncoder):
    r"""Laplace posterior, :math:`q(z|x) = \prod_j \mathrm{Laplace}(z_j; \mu_j(x), b_j(x))` (Barello et al., 2018).

    Its KL divergence from a Laplace or Normal prior has a closed form. Arguments, shapes and errors are those of
    `NormalEncoder`.

    References:
        G. Barello, A. S. Charles, J. W. Pillow (2018), Sparse-coding variational auto-encoders.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> vsc.LaplaceEncoder(784, latent_dim=50)(torch.rand(8, 784)).event_shape
        torch.Size([50])
    """

    family = Laplace


class CauchyEncoder(_LocationScaleEncoder):
    r"""Cauchy posterior, :math:`q(z|x) = \prod_j \mathrm{Cauchy}(z_j; \mu_j(x), g_j(x))`, for a `CauchyPrior`.

    Only a heavy-tailed prior has a finite KL divergence from it. :math:`E|z|` is infinite, so the expected loss is
    infinite if the decoder grows without bound, as a ReLU network does. Use a decoder whose first layer saturates
    (``activation="tanh"``); `vsc_pyro.VAE` refuses any other. Arguments, shapes and errors are those of
    `NormalEncoder`.

    Example:
        >>> import vsc_pyro as vsc
        >>> decoder = vsc.BernoulliDecoder(4, 64, activation="tanh")
        >>> model = vsc.VAE(vsc.CauchyEncoder(64, 4), decoder, vsc.CauchyPrior(4))
    """

    family = Cauchy


class DeltaEncoder(Encoder):
    r"""Point posterior, :math:`q(z|x) = \delta_{f(x)}`, the encoder of an autoencoder.

    Training maximises :math:`\log p(x|z) + \log p(z)` at :math:`z = f(x)`. Plain autoencoder: a `FlatPrior`. Denoising
    autoencoder: `corruption` (Vincent et al., 2010). L1 sparse autoencoder: a `LaplacePrior`, whose log-density is
    :math:`-|z|/b` plus a constant. A point has no density, so there is no evidence lower bound, and `vsc_pyro.evaluate`
    reports none. The decoder can undo the prior's penalty: smaller codes and larger weights reconstruct the same data.
    Weight decay limits that.

    Args:
        input_shape, latent_dim, hidden, activation, trunk: see `NormalEncoder`.
        rectify: True for codes :math:`\max(0, f(x))`, with exact zeros, as in sparse autoencoders.
        corruption: probability in [0, 1) that a pixel is set to zero before encoding, in training mode.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: a size below 1, an unknown activation, or a corruption outside [0, 1).

    References:
        P. Vincent et al. (2010), Stacked denoising autoencoders.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> codes = vsc.DeltaEncoder(64, latent_dim=8, rectify=True)(torch.rand(5, 64)).mean
        >>> codes.shape, bool((codes >= 0).all())
        (torch.Size([5, 8]), True)
    """

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        hidden: int | Sequence[int] | None = None,
        activation: str = "silu",
        trunk: nn.Module | None = None,
        rectify: bool = False,
        corruption: float = 0.0,
    ) -> None:
        super().__init__(input_shape, latent_dim, 1, hidden, activation, trunk)
        self.rectify = rectify
        if not 0 <= corruption < 1:
            raise ValueError(f"corruption must be a probability of at least 0 and below 1, got {corruption!r}")
        self.corruption = corruption

    @property
    def jump_thresholds(self) -> Tensor | None:
        """The thresholds of the code as a JumpReLU of its linear head, shape ``(J,)``: 0, or None if it is not one."""
        is_linear = len(self.network) == 2 and isinstance(self.network[0], nn.Flatten)
        return self.input_mean.new_zeros(self.latent_dim) if self.rectify and is_linear else None

    def forward(self, x: Float[Tensor, "batch ..."]) -> Delta:
        if self.training and self.corruption:
            x = x * torch.bernoulli(torch.full_like(x, 1 - self.corruption))
        (code,) = self.heads(x)
        return Delta(torch.relu(code) if self.rectify else code, event_dim=1)

    def extra_repr(self) -> str:
        return f"rectify={self.rectify}, corruption={self.corruption}"
