r"""An encoder whose posterior is improved by closed-form updates under the model's own linear decoder.

For :math:`p(x|z) = N(x; b + \sum_j z_j d_j, \sigma^2)` and the prior
:math:`\alpha_j N(z_j; m_j, s_j^2) + (1 - \alpha_j)\, \delta_0`, the evidence lower bound of independent
:math:`q(z_j) = \gamma_j F_j(z_j) + (1 - \gamma_j)\, \delta_0` is maximal in one latent, given the others, at
:math:`F_j = N(\mu_j, \sigma_j^2)` with

.. math::
    \sigma_j^{-2} = \|d_j / \sigma\|^2 + s_j^{-2}, \qquad
    \mu_j = \sigma_j^2 \Big( \frac{a_j}{\sigma^2} + \frac{m_j}{s_j^2} \Big), \qquad
    a_j = d_j^\top \Big( x - b - \sum_{i \ne j} E[z_i]\, d_i \Big),

.. math::
    \mathrm{logit}\, \gamma_j = \mathrm{logit}\, \alpha_j + \log N(0; m_j, s_j^2) - \log N(0; \mu_j, \sigma_j^2).

The last line is the ratio of Savage and Dickey (Dickey, 1971). All of it holds for normal slabs truncated to z > 0,
with their densities at 0, since a normal likelihood keeps the family. A weight :math:`\beta` of the divergence
multiplies :math:`\sigma^2` in these formulas.

All latents move at once, a share of the way, because several that explain the same part of a datum would all take it.
A datum that would be reconstructed far worse than before, and than by a code of zeros, goes less of the way. How far
is computed as if its mean moved in a straight line, and gradients hold that share fixed.

References
    J. M. Dickey (1971), The weighted likelihood ratio, linear hypotheses on normal location parameters.
    M. K. Titsias, M. Lázaro-Gredilla (2011), Spike and slab variational inference for multi-task learning.
    R. D. Hjelm et al. (2016), Iterative refinement of the approximate posterior for directed belief networks.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.distributions import Distribution

from vsc_pyro._arguments import choice, positive_int
from vsc_pyro.distributions import IndependentSpikeSlab, inclusion_logits, slab_of
from vsc_pyro.distributions.elementwise import squared_distance
from vsc_pyro.distributions.linear_normal import as_linear
from vsc_pyro.distributions.slabs import held
from vsc_pyro.distributions.truncated_normal import TruncatedNormal
from vsc_pyro.models.encoders.spike_slab import SpikeSlabEncoder

if TYPE_CHECKING:
    from jaxtyping import Float

    from vsc_pyro.models.vae import VAE

_LEAST = 0.05
_LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)


class Family(NamedTuple):
    """A family of slabs that a normal likelihood keeps.

    Attributes:
        cls: its class.
        minus_log_density_at_zero: returns a number minus the log-density at 0, by number, location and scale.
    """

    cls: type[Normal] | type[TruncatedNormal]
    minus_log_density_at_zero: Callable[[Tensor, Tensor, Tensor], Tensor]


def _minus_normal_at_zero(number: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    constant = number + scale.log() + _LOG_ROOT_2_PI
    return torch.addcmul(constant, squared_distance(loc, torch.zeros_like(scale)), 0.5 / scale.square())


def _minus_truncated_at_zero(number: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Take the limit from above, because 0 itself is outside the support."""
    zero = torch.zeros_like(scale)
    return number - TruncatedNormal(loc, scale, validate_args=False).expected_log_prob(zero, zero)


_FAMILIES = {
    "normal": Family(Normal, _minus_normal_at_zero),
    "truncated-normal": Family(TruncatedNormal, _minus_truncated_at_zero),
}


class RefinedEncoder(SpikeSlabEncoder):
    r"""A `SpikeSlabEncoder` followed by closed-form updates of its posterior under the model that it is part of.

    The network's posterior is the start of `steps` updates, which the module's docstring has. Each moves log-odds,
    locations and scales of all latents by the share `damping` of the way to their optima given the others. Gradients
    are those at the last update, through all of them. The optimum is that of the objective, with the model's `beta` and
    warm-up; weights of the divergence below .05 count as .05, since at 0 the optimum has no width.

    An encoder that is passed to a second `vsc_pyro.VAE` refines under the second, in both models. A copy of a model
    refines under the copy. A copy of the encoder alone is part of no model until a `vsc_pyro.VAE` is built with it.

    Args:
        input_shape, latent_dim: see `SpikeSlabEncoder`.
        steps: number of updates.
        damping: share of the way, above 0 and at most 1; one learned parameter for each update starts there.
        slab: ``"normal"`` or ``"truncated-normal"``, the family of the prior's slabs.
        options: further arguments of `SpikeSlabEncoder`.

    Shapes:
        x ``(B, *input_shape)``; the distribution has `batch_shape` ``(B,)`` and `event_shape` ``(J,)``.

    Raises:
        ValueError: as `SpikeSlabEncoder`; `steps` below 1; a `damping` outside (0, 1]; another `slab`. When called: an
            encoder that is part of no `vsc_pyro.VAE`, or of one with ``missing=True``; a likelihood that is not a
            linear map of the code with normal noise; a prior without spikes or with slabs of another family.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> encoder, decoder = vsc.RefinedEncoder(6, 2, steps=3), vsc.NormalDecoder(2, 6, hidden=())
        >>> vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(2)).encoder(torch.randn(5, 6)).event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        input_shape: int | Sequence[int],
        latent_dim: int,
        *,
        steps: int = 1,
        damping: float = 0.5,
        slab: str = "normal",
        **options: Any,
    ) -> None:
        choice("slab of a RefinedEncoder", slab, _FAMILIES)
        super().__init__(input_shape, latent_dim, slab=slab, **options)
        if not (isinstance(damping, numbers.Real) and 0 < damping <= 1):
            raise ValueError(f"damping must lie above 0 and be at most 1, got {damping!r}")
        self._models: tuple[VAE, ...] = ()
        self.steps = positive_int("steps", steps)
        self.damping = nn.Parameter(torch.full((self.steps,), float(damping)))

    def attach(self, model: VAE) -> None:
        """Refine under `model`, whose encoder this is; `vsc_pyro.VAE` calls it."""
        self._models = (model,)  # a tuple, which registers no parameters a second time

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_models": ()}  # a copied or unpickled model attaches itself

    def forward(self, x: Float[Tensor, "batch ..."]) -> IndependentSpikeSlab:
        if not self._models:
            raise ValueError("a RefinedEncoder refines under a model; build a vsc_pyro.VAE with it")
        (model,) = self._models
        q = Parameters(*self._inferred(x))
        likelihood = model.decoder(q.loc.new_zeros(1, self.latent_dim))
        beta = (model.beta * model.warmup).clamp(min=_LEAST)
        optimum = Optimum(x, likelihood, model.prior(x), _FAMILIES[self.slab], beta)
        # The gradient passes where the share is clipped, so a share beyond the end can return.
        for share in held(self.damping, 0, 1):
            q = optimum.approached(q, share)
        return self._posterior(*q)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, steps={self.steps}"


class Parameters(NamedTuple):
    """Parameters of a spike-and-slab posterior, of shapes that broadcast to ``(B, J)``."""

    logits: Tensor
    loc: Tensor
    scale: Tensor


class Optimum:
    r"""The coordinate-wise optimum of the evidence lower bound of data, see the module's docstring.

    Args:
        x: data, shape ``(B, ...)``.
        likelihood: p(x|z = 0) with `batch_shape` ``(1,)``.
        prior: p(z).
        family: of the slabs.
        beta: weight of the divergence, above 0.

    Raises:
        ValueError: another likelihood or prior than `RefinedEncoder` takes.
    """

    def __init__(self, x: Tensor, likelihood: Distribution, prior: Distribution, family: Family, beta: Tensor) -> None:
        slab, logits = slab_of(prior), inclusion_logits(prior)
        found = as_linear(likelihood)
        if found is None:
            raise ValueError(
                f"the updates of a RefinedEncoder need a linear decoder with normal noise and no missing values, "
                f"got a likelihood of {type(getattr(likelihood, 'base_dist', likelihood)).__name__}; take "
                "DictionaryDecoder or NormalDecoder(hidden=()) in a VAE without missing=True, or a SpikeSlabEncoder"
            )
        if logits is None or type(slab) is not family.cls:
            raise ValueError(
                f"the updates of a RefinedEncoder need a spike-and-slab prior with slabs of its own family, "
                f"{family.cls.__name__}, got slabs of {type(slab).__name__}; pass the same slab= to both"
            )
        slab = cast("Normal", slab)
        self._family = family
        linear, values = found
        self._dictionary = linear.dictionary.flatten(1)
        # The gradient of 1 / variance has the variance's square, which data in tiny units would take out of float32.
        precision = linear.scale.expand(linear.event_shape).flatten().reciprocal().square()
        self._precision, self._weight = precision, precision / beta
        self._sharpness = linear.sharpness / beta
        self._product = linear.product
        self._centred = values(x.flatten(1)) - linear.mean.flatten()
        prior_precision = slab.scale.square().reciprocal()
        self._variance = (self._sharpness + prior_precision).reciprocal()
        self._pull = self._variance * prior_precision * slab.loc
        self._scale = self._variance.sqrt()
        self._bias = logits - family.minus_log_density_at_zero(torch.zeros_like(logits), slab.loc, slab.scale)

    def approached(self, q: Parameters, share: Tensor) -> Parameters:
        """Return q after a `share` of the way to the optimum of each latent, given that all others stay at q."""
        mean = self._mean(q)
        residual = self._residual(mean)
        explained = self._product(residual * self._weight, self._dictionary.T)
        loc = torch.addcmul(self._pull, torch.addcmul(explained, self._sharpness, mean), self._variance)
        optimum = Parameters(self._family.minus_log_density_at_zero(self._bias, loc, self._scale), loc, self._scale)
        with torch.no_grad():
            kept = self._kept(residual, self._residual(self._mean(_between(q, optimum, share, share))))
        return _between(q, optimum, share * kept, share)

    def _mean(self, q: Parameters) -> Tensor:
        return q.logits.sigmoid() * self._family.cls(q.loc, q.scale, validate_args=False).mean

    def _residual(self, mean: Tensor) -> Tensor:
        return self._centred - self._product(mean, self._dictionary)

    def _kept(self, residual: Tensor, moved: Tensor) -> Tensor:
        """Return the share of a straight move of the residual, shape ``(B, 1)``, that keeps the error in its bound.

        The bound of a datum's squared error is the larger one of those before the move and of a code of zeros, plus D,
        the error that noise makes. Latents that move together may overshoot it by orders of magnitude, if many are on
        and explain the same part of the datum.
        """
        wide = torch.promote_types(residual.dtype, torch.float32)
        given = [(r * self._precision.sqrt()).to(wide) for r in (residual, moved, self._centred)]
        unit = torch.stack([r.abs().amax(-1, keepdim=True) for r in given]).amax(0)  # squares of squares overflow
        start, end, zeros = (r / unit for r in given)
        before, after, of_zeros = (r.square().sum(-1, keepdim=True) for r in (start, end, zeros))
        noise = start.shape[-1] / unit.square()
        allowed = torch.maximum(of_zeros - before, torch.zeros_like(before)) + noise
        change = end - start
        squares, slope = change.square().sum(-1, keepdim=True), (start * change).sum(-1, keepdim=True)
        largest = ((slope.square() + squares * allowed).sqrt() - slope) / squares
        exceeds = after > before + allowed
        return torch.where(exceeds, largest.nan_to_num(0.0).clamp(0, 1), torch.ones_like(largest)).to(residual)


def _between(start: Parameters, end: Parameters, share: Tensor, scale_share: Tensor) -> Parameters:
    """Return the parameters at a share of the way. That of the scales is one for all data, as they may be."""
    shares = share, share, scale_share
    return Parameters(*(torch.lerp(*ends) for ends in zip(start, end, shares, strict=True)))
