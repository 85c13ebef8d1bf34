"""Priors without an atom at zero: every latent of every datum is on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro.distributions import (  # Pyro defines some of these at import, unseen by pyright
    Categorical,
    Cauchy,  # pyright: ignore[reportAttributeAccessIssue]
    ImproperUniform,
    Independent,
    Laplace,  # pyright: ignore[reportAttributeAccessIssue]
    MixtureSameFamily,  # pyright: ignore[reportAttributeAccessIssue]
    Normal,
)
from torch import Tensor
from torch.distributions import constraints

from vsc_pyro._arguments import positive_float, positive_int
from vsc_pyro.models.priors.prior import Prior

if TYPE_CHECKING:
    from jaxtyping import Float


class _FactorialPrior(Prior):
    family: ClassVar[Any]  # a class of distributions with location and scale
    loc: Tensor

    def __init__(self, latent_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.register_buffer("loc", torch.zeros(self.latent_dim), persistent=False)
        self.scale = positive_float("scale", scale)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Independent:
        return self.family(self.loc, torch.full_like(self.loc, self.scale)).to_event(1)

    def extra_repr(self) -> str:
        return f"{self.latent_dim}, scale={self.scale}"


class NormalPrior(_FactorialPrior):
    """Normal prior, :math:`p(z_j) = N(z_j; 0, s^2)` (Kingma & Welling, 2014).

    Args:
        latent_dim: number of latents J.
        scale: standard deviation s.

    Shapes:
        The distribution has `batch_shape` ``()`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: a `latent_dim` below 1 or a `scale` that is not positive.

    >>> import vsc_pyro as vsc
    >>> vsc.NormalPrior(latent_dim=5)(torch.zeros(1, 64)).event_shape
    torch.Size([5])
    """

    family = Normal


class LaplacePrior(_FactorialPrior):
    """Laplace prior, :math:`p(z_j) = e^{-|z_j|/b} / 2b` (Olshausen & Field, 1997; in a VAE, Barello et al., 2018).

    Its KL divergence from `NormalEncoder` and `LaplaceEncoder` has a closed form; with `DeltaEncoder` it is the L1
    penalty of a sparse autoencoder. Arguments, shapes and errors are those of `NormalPrior`; `scale` is b.
    """

    family = Laplace


class CauchyPrior(_FactorialPrior):
    r"""Cauchy prior, :math:`p(z_j) = g / \pi (g^2 + z_j^2)` (Olshausen & Field, 1997).

    Its KL divergence from `CauchyEncoder` has a closed form (F. Chyzak, F. Nielsen, 2019); from other encoders it is
    sampled. Arguments, shapes and errors are those of `NormalPrior`; `scale` is g.
    """

    family = Cauchy


class Flat(ImproperUniform):
    """`ImproperUniform` whose log-density is on the device of the value; Pyro's is on the CPU."""

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(()).expand(super().log_prob(value).shape)


class FlatPrior(Prior):
    """The improper uniform prior, for the plain autoencoder of a `DeltaEncoder`.

    Args:
        latent_dim: number of latents J.

    Shapes:
        The distribution has `batch_shape` ``()`` and `event_shape` ``(J,)``; it cannot be sampled.

    >>> import vsc_pyro as vsc
    >>> autoencoder = vsc.VAE(vsc.DeltaEncoder(64, 5), vsc.BernoulliDecoder(5, 64), vsc.FlatPrior(5))
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)

    def forward(self, x: Float[Tensor, "batch ..."]) -> ImproperUniform:
        return Flat(constraints.real_vector, (), (self.latent_dim,))

    def extra_repr(self) -> str:
        return f"{self.latent_dim}"


class NormalMixturePrior(Prior):
    r"""Mixture of a narrow and a wide Normal, :math:`p(z_j) = \sum_k w_k N(z_j; 0, s_k^2)` (George & McCulloch, 1993).

    The continuous spike-and-slab: codes become small, never zero. Its KL divergence has no closed form; it is sampled,
    and a warning says so once.

    Args:
        latent_dim: number of latents J.
        weights: weights of the components, positive; they are normalised.
        scales: standard deviations of the components, as many as weights.

    Shapes:
        The distribution has `batch_shape` ``()`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: weights or scales that are not positive, or unequal numbers of them.

    >>> import vsc_pyro as vsc
    >>> vsc.NormalMixturePrior(5, weights=(9, 1))(torch.zeros(1, 64)).event_shape
    torch.Size([5])
    """

    _logits: Tensor
    _scales: Tensor

    def __init__(
        self, latent_dim: int, weights: Sequence[float] = (0.8, 0.2), scales: Sequence[float] = (0.1, 1.0)
    ) -> None:
        super().__init__()
        self.latent_dim = positive_int("latent_dim", latent_dim)
        self.weights = tuple(positive_float("weights", weight) for weight in weights)
        self.scales = tuple(positive_float("scales", scale) for scale in scales)
        if len(self.weights) != len(self.scales):
            raise ValueError(
                f"weights and scales must have the same length, one of each for every component, got "
                f"{len(self.weights)} and {len(self.scales)}"
            )
        self.register_buffer("_logits", torch.tensor(self.weights).log(), persistent=False)
        self.register_buffer("_scales", torch.tensor(self.scales), persistent=False)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Independent:
        shape = (self.latent_dim, len(self.scales))
        components = Normal(torch.zeros_like(self._scales).expand(shape), self._scales.expand(shape))
        return MixtureSameFamily(Categorical(logits=self._logits.expand(shape)), components).to_event(1)

    def extra_repr(self) -> str:
        return f"{self.latent_dim}, weights={self.weights}, scales={self.scales}"
