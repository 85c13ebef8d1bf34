r"""Likelihoods of counts: Poisson and negative binomial, with the size of a datum and covariates as its context.

The rate of gene d (of any value that is counted) in a datum of size s with covariates c is

.. math:: \mu_d = u\, s\, r\Big(f_d(z) + \sum_k a_{dk} c_k\Big), \qquad r(f) = e^{\min(f, 0)} + \max(f, 0),

see `vsc_pyro.distributions.CountRows`. Below a share of 1 the link is the logarithm, so that with ``hidden=()`` a
latent adds the same log fold changes to every datum, whatever the other latents and its depth. A softmax over genes,
the other common link, lowers all genes when it raises one, and determines loadings only up to a constant.

References
    W. Townes, S. C. Hicks, M. J. Aryee, R. A. Irizarry (2019), Feature selection and dimension reduction for
        single-cell RNA-Seq based on a multinomial model.
    R. Lopez, J. Regier, M. B. Cole, M. I. Jordan, N. Yosef (2018), Deep generative modeling for single-cell
        transcriptomics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import (
    NegativeBinomial,  # pyright: ignore[reportAttributeAccessIssue]  Pyro defines it at import
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from torch import Tensor, nn

from vsc_pyro._arguments import choice, natural_int, yes_or_no
from vsc_pyro.distributions import CountRows
from vsc_pyro.distributions.counts import context_of
from vsc_pyro.models.decoders.base import PixelDecoder

if TYPE_CHECKING:
    from jaxtyping import Float

# Larger concentrations are as good as Poisson, and lose the digits of float32 in differences of log-gamma functions.
_MOST_CONCENTRATED = 1000.0
_START_CONCENTRATION = 10.0
_START_ZERO_LOGIT = -3.0


class CountDecoder(PixelDecoder):
    """Counts whose likelihood is conditional on a size and on covariates; a subclass defines that of one count."""

    typical: Tensor
    unit: Tensor

    def __init__(
        self,
        latent_dim: int,
        output_shape: int | Sequence[int],
        hidden: int | Sequence[int] | None = None,
        activation: str = "relu",
        trunk: nn.Module | None = None,
        *,
        size: str = "row sum",
        num_covariates: int = 0,
    ) -> None:
        num_covariates = natural_int("num_covariates", num_covariates)
        super().__init__(latent_dim, output_shape, hidden, activation, trunk, num_covariates=num_covariates)
        if len(self.output_shape) > 1:
            raise ValueError(f"output_shape must be a number of counts, got {self.output_shape}; flatten the data")
        self.size = size
        self.size_is_given = choice("size", size, {"row sum": False, "given": True})
        self.register_buffer("typical", torch.tensor([1.0, *[0.0] * num_covariates]))
        self.register_buffer("unit", torch.ones(()))

    def prepare(self, images: Tensor) -> None:
        """Start from the mean counts, and take the typical context, in the first call, if trainable.

        The initial weights are scaled so that switching a latent on changes a typical datum by about half a nat.
        """
        starts = self.is_fresh and self.own_layer.weight.requires_grad
        super().prepare(images)
        if starts:
            counts, context = self._parted(images)
            total = counts.double().sum(1).mean()
            with torch.no_grad():
                self.unit.copy_(total.clamp(min=0.5 / len(counts)) / context[:, 0].double().mean())
                self.own_layer.weight.mul_((counts.shape[1] / total.clamp(min=1)).sqrt())

    def _parted(self, images: Tensor) -> tuple[Tensor, Tensor]:
        counts, _ = super()._parted(images)
        return counts, context_of(images.flatten(1), counts.shape[1], self.size_is_given)

    def _typical_of(self, context: Tensor) -> Tensor:
        return torch.cat([context[:, :1].double().median()[None], super()._typical_of(context[:, 1:])])

    def _outputs_of(self, mean: Tensor, scale: Tensor, num_data: int) -> Tensor:
        # Half a count is added to each gene, for the logarithm of one that is never seen.
        seen = mean * num_data + 0.5
        return (seen / seen.sum()).log()

    def count(self, rate: Tensor) -> Any:
        """Return the distribution of single counts with these means, before an inflation of zeros."""
        raise NotImplementedError

    def comparable(self, x: Tensor) -> tuple[Tensor, Tensor]:
        counts, context = self._parted(x)
        if self.effects is not None:
            counts = counts * ((self.typical[1:] - context[:, 1:]) @ self.effects.T).exp()
        size = context[:, :1] if self.size_is_given else counts.sum(1, keepdim=True)
        counts = counts * (self.typical[0] / size)
        stored = self.typical[int(not self.size_is_given) :]
        return counts, torch.cat([counts, stored.expand(len(x), -1)], 1)

    def forward(self, z: Float[Tensor, "*draws latents"]) -> CountRows:
        return CountRows(self.pixels(z), self.typical, self.count, self.effects, self.unit, self.size_is_given)

    def extra_repr(self) -> str:
        return f"size={self.size!r}, num_covariates={len(self.typical) - 1}"


class PoissonDecoder(CountDecoder):
    r"""Poisson counts given the size of a datum, :math:`p(n|z, s) = \prod_d \mathrm{Poisson}(n_d; \mu_d)`.

    .. math:: \mu_d = u\, s\, r\Big(f_d(z) + \sum_k a_{dk} c_k\Big), \qquad r(f) = e^{\min(f, 0)} + \max(f, 0).

    **Pass raw counts.** The network f returns the logarithm of the share of a gene in the counts; above a share of 1
    the link r is linear, so that no code overflows. With ``hidden=()``, `dictionary` holds the log fold changes of each
    latent: one unit of :math:`z_j` multiplies the rate of gene d by :math:`\exp` of ``dictionary[j, d]``.

    **The size** s, the depth of a cell or the exposure of a datum, is the sum of its counts, or is given with it.
    **Covariates** c, such as the batch of a cell as zeros and a one, have an effect a on each gene, which starts at 0.
    Size and covariates are the context of a datum: `Dataset` and its `context` place them behind the counts,

    .. math:: x = (n_1, \dots, n_D, [s,] c_1, \dots, c_K),

    and the encoder's `input_shape` is the length of such a row; see `CountTrunk` for its network. Covariates multiply
    rates, whatever the code. All bounds are those of :math:`\log p(n | s, c)`. Draws of the prior and figures of codes
    have the typical context: the median size and the mean covariates of the training data. Predictions and
    reconstructions of a datum have its own. R2 compares counts rescaled to the typical context. u converts sizes to
    counts: the mean sum of counts over the mean size of the training data.

    Args:
        latent_dim: number of latents J.
        output_shape: number of counts D.
        hidden: widths of the MLP's hidden layers, ``()`` for a linear map; None for ``(400,)``.
        activation, trunk: see `BernoulliDecoder`.
        size: ``"row sum"`` for the sum of the datum's counts; ``"given"`` for a column behind the counts.
        num_covariates: number K of columns behind the counts, and behind the size if it is given.

    Shapes:
        z ``(*, J)``; the distribution has `batch_shape` ``(*)`` and `event_shape` ``(D + K,)``, or ``(D + 1 + K,)``
        with given sizes.

    Raises:
        ValueError: as `BernoulliDecoder`; an `output_shape` of several dimensions, an unknown `size` (the message lists
            the known ones). When a model meets data: values that are not whole numbers of at least 0, a size of 0.

    References:
        W. Townes, S. C. Hicks, M. J. Aryee, R. A. Irizarry (2019), Feature selection and dimension reduction for
        single-cell RNA-Seq based on a multinomial model.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> counts, batches = torch.poisson(torch.full((50, 30), 2.0)), torch.eye(2).repeat(25, 1)
        >>> cells = vsc.Dataset(counts, context=batches)
        >>> encoder = vsc.SpikeSlabEncoder(32, 4, trunk=vsc.CountTrunk(30, num_covariates=2))
        >>> model = vsc.VAE(encoder, vsc.PoissonDecoder(4, 30, (), num_covariates=2), vsc.SpikeSlabPrior(4))
        >>> history = vsc.fit(model, cells, epochs=2, progress=False)
        >>> model.decoder.dictionary.shape, model.decoder(torch.zeros(3, 4)).event_shape
        (torch.Size([4, 30]), torch.Size([32]))
    """

    def count(self, rate: Tensor) -> Poisson:
        return Poisson(rate, validate_args=False)


class NegativeBinomialDecoder(CountDecoder):
    r"""Overdispersed counts given the size of a datum: negative binomial, with optional inflation of zeros.

    .. math:: n_d \sim \mathrm{NB}(\mu_d, r_d), \qquad Var(n_d | z, s) = \mu_d + \mu_d^2 / r_d,

    with the rates :math:`\mu_d` of `PoissonDecoder`, where size, covariates and the arguments not listed here are
    described. The concentrations r are parameters that start at 10 and stay below 1000, which is nearly Poisson.

    Args:
        dispersion: ``"gene"`` for a concentration of each gene, ``"shared"`` for one.
        zero_inflated: True mixes a count with an exact 0, whose probability is a parameter of each gene.

    Raises:
        ValueError: as `PoissonDecoder`; an unknown `dispersion` (the message lists the known ones).

    References:
        R. Lopez, J. Regier, M. B. Cole, M. I. Jordan, N. Yosef (2018), Deep generative modeling for single-cell
        transcriptomics.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> decoder = vsc.NegativeBinomialDecoder(latent_dim=4, output_shape=30, hidden=(), size="given")
        >>> decoder.concentration[:2].detach().round().tolist(), decoder(torch.zeros(3, 4)).sample().shape
        ([10.0, 10.0], torch.Size([3, 31]))
    """

    def __init__(
        self,
        latent_dim: int,
        output_shape: int | Sequence[int],
        hidden: int | Sequence[int] | None = None,
        activation: str = "relu",
        trunk: nn.Module | None = None,
        *,
        dispersion: str = "gene",
        zero_inflated: bool = False,
        **context: Any,
    ) -> None:
        super().__init__(latent_dim, output_shape, hidden, activation, trunk, **context)
        self.dispersion = dispersion
        shape = choice("dispersion", dispersion, {"gene": self.output_shape, "shared": ()})
        start = math.log(_START_CONCENTRATION / (_MOST_CONCENTRATED - _START_CONCENTRATION))
        self.concentration_logit = nn.Parameter(torch.full(shape, start))
        zeros = torch.full(self.output_shape, _START_ZERO_LOGIT)
        self.zero_logit = nn.Parameter(zeros) if yes_or_no("zero_inflated", zero_inflated) else None

    @property
    def concentration(self) -> Tensor:
        """The concentrations r, shape ``(D,)``, or ``()`` if shared."""
        return _MOST_CONCENTRATED * self.concentration_logit.sigmoid()

    def count(self, rate: Tensor) -> Any:
        concentration = self.concentration
        settings = {"logits": rate.log() - concentration.log(), "validate_args": False}
        if self.zero_logit is None:
            return NegativeBinomial(concentration.expand_as(rate), **settings)
        return ZeroInflatedNegativeBinomial(concentration.expand_as(rate), gate_logits=self.zero_logit, **settings)

    def extra_repr(self) -> str:
        inflated = "" if self.zero_logit is None else ", zero_inflated=True"
        return f"dispersion={self.dispersion!r}{inflated}, {super().extra_repr()}"
