r"""The tails of a normal distribution, shifted together: the slab that a shifted soft threshold leaves.

With the threshold in standard deviations :math:`t = \lambda / \sigma` and the excess :math:`y = |z - \mu| / \sigma`,

.. math::
    F(z) = \frac{\phi(y + t)}{2 \sigma \Phi(-t)} = \frac{h(t)}{2 \sigma}\, e^{-t y - y^2 / 2}, \qquad
    h(t) = \frac{\phi(t)}{\Phi(-t)} = \sqrt{2 / \pi} \,/\, \mathrm{erfcx}(t / \sqrt 2).

This is the normal distribution at t = 0, and close to a Laplace distribution of scale :math:`\sigma / t` for large t.
Written with the hazard h, nothing under- or overflows. A draw solves :math:`P(Y > y) = u`; implicit differentiation
gives :math:`dy / dt = h(t) / h(t + y) - 1`. The moments of the excess are :math:`r = E\,y = h(t) - t` and
:math:`v = E\,y^2 = 1 - t r`. With

.. math:: E\,|z - m| = D + \sigma\, P(Y > D / \sigma)\, r(t + D / \sigma), \qquad D = |\mu - m|,

the divergences from Normal, Laplace and other shifted tails have closed forms.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Laplace, Normal, constraints, register_kl
from torch.distributions.utils import broadcast_all, lazy_property
from torch.types import _size

from vsc_pyro.distributions.families import tail_power
from vsc_pyro.distributions.low_precision import kl_in_float32

if TYPE_CHECKING:
    from jaxtyping import Float

_VERY_FAR = 30.0  # from here on, a tail times the survival of a draw may underflow in float64
_FAR = 5.0  # from here on, 1 - t r loses the precision of float32, and the continued fraction reaches it
_DEPTH = 12  # of the continued fraction


class ShiftedNormalTails(TorchDistribution):
    r"""The distribution of :math:`\zeta - \mathrm{sign}(\zeta - \mu) \lambda` where :math:`|\zeta - \mu| > \lambda`.

    Here :math:`\zeta \sim N(\mu, \sigma^2)`. It is the slab of a `ThresholdedSpikeSlab`, with pathwise gradients in all
    parameters.

    Args:
        loc: :math:`\mu`.
        scale: :math:`\sigma`, above 0.
        threshold: :math:`\lambda`, at least 0; broadcast against the others.
        validate_args: as in `torch.distributions`.

    Shapes:
        `batch_shape` is the parameters' broadcast; `event_shape` is ``()``.

    Raises:
        ValueError: a scale or a threshold outside its range.

    Example:
        >>> import torch
        >>> from vsc_pyro.distributions import ShiftedNormalTails
        >>> tails = ShiftedNormalTails(loc=1.0, scale=2.0, threshold=torch.tensor([0.0, 4.0]))
        >>> tails.stddev  # at a threshold of 0, the scale of the normal distribution
        tensor([2.0000, 1.0071])
    """

    arg_constraints: ClassVar[Any] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "threshold": constraints.nonnegative,
    }
    support: ClassVar[Any] = constraints.real
    has_rsample = True

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        threshold: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale, self.threshold = broadcast_all(loc, scale, threshold)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: ShiftedNormalTails | None = None) -> ShiftedNormalTails:
        new = cast("ShiftedNormalTails", self._get_checked_instance(ShiftedNormalTails, _instance))
        batch_shape = torch.Size(batch_shape)
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        super(ShiftedNormalTails, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @lazy_property
    def cut(self) -> Tensor:
        r"""The threshold in standard deviations, :math:`t = \lambda / \sigma`."""
        return self.threshold / self.scale

    @lazy_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        return excess_moments(self.cut)

    @property
    def log_peak(self) -> Tensor:
        """Log-density at the location, which is its maximum; shape `batch_shape`."""
        return ((self.cut + self._moments[0]) / (2 * self.scale)).log()

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        r""":math:`\sigma^2 v(t)`, shape `batch_shape`."""
        return self.scale**2 * self._moments[1]

    def entropy(self) -> Tensor:
        r""":math:`\log 2 \sigma - \log h(t) + (1 + t r) / 2` in nats, shape `batch_shape`."""
        mean, _ = self._moments
        return 0.5 * (1 + self.cut * mean) - self.log_peak

    def log_prob(self, value: Float[Tensor, "*value"]) -> Float[Tensor, "*broadcast"]:
        if self._validate_args:
            self._validate_sample(value)
        excess = (value - self.loc).abs() / self.scale
        return self.log_peak - excess * (self.cut + 0.5 * excess)

    def cdf(self, value: Tensor) -> Tensor:
        tail = 0.5 * _survival(self.cut, (value - self.loc).abs() / self.scale)
        return torch.where(value < self.loc, tail, 1 - tail)

    def icdf(self, value: Tensor) -> Tensor:
        excess = excess_beyond(self.cut, -torch.log(2 * torch.minimum(value, 1 - value)))
        return self.loc + self.scale * torch.sign(value - 0.5) * excess

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:
        cut = self.cut.expand(self._extended_shape(sample_shape))
        with torch.no_grad():
            excess = excess_beyond(cut, torch.empty_like(cut).exponential_())
            sign = 2.0 * (torch.rand_like(cut) < 0.5) - 1
            slope = hazard(cut) / hazard(cut + excess) - 1
        excess = excess + slope * (cut - cut.detach())
        return self.loc + self.scale * sign * excess

    def absolute_deviation(self, centre: Tensor | float) -> Tensor:
        r"""Return :math:`E\,|z - m|` for numbers m, whose shape is broadcast against `batch_shape`."""
        distance = (self.loc - centre).abs()
        beyond = distance / self.scale
        mean, _ = excess_moments(self.cut + beyond)
        return distance + self.scale * _survival(self.cut, beyond) * mean

    def squared_deviation(self, centre: Tensor | float) -> Tensor:
        r"""Return :math:`E\,(z - m)^2` for numbers m, whose shape is broadcast against `batch_shape`."""
        return self.variance + (self.loc - centre) ** 2


def hazard(cut: Tensor) -> Tensor:
    wide = torch.promote_types(cut.dtype, torch.float32)  # torch has no erfcx of half precision
    return (math.sqrt(2 / math.pi) / torch.special.erfcx(cut.to(wide) / math.sqrt(2))).to(cut.dtype)


def _survival(cut: Tensor, excess: Tensor) -> Tensor:
    """Return P(Y > excess)."""
    return hazard(cut) / hazard(cut + excess) * torch.exp(-excess * (cut + 0.5 * excess))


def excess_beyond(cut: Tensor, level: Tensor) -> Tensor:
    """Return the excess y with P(Y > y) = exp(-level)."""
    near = cut.double().clamp(max=_VERY_FAR)
    tail = torch.special.ndtri(0.5 * torch.erfc(near / math.sqrt(2)) * torch.exp(-level.double()))
    # Where float64 underflows, the hazard is linear over the excess to seven digits, so its integral can be inverted.
    at_cut = hazard(cut)
    linear = 2 * level / (at_cut + (at_cut * (at_cut + 2 * (at_cut - cut) * level)).sqrt())
    return torch.where(cut < _VERY_FAR, (-tail - near).clamp(min=0).to(cut.dtype), linear)


def excess_moments(cut: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return :math:`r = E\,y` and :math:`v = E\,y^2`."""
    is_near, border = cut < _FAR, torch.full_like(cut, _FAR)
    # Unlike `clamp`, this passes one gradient at the border.
    near, far = torch.where(is_near, cut, border), torch.where(is_near, border, cut)
    mean = hazard(near) - near
    # For large t, h - t is a small difference of large numbers, and 1 / (t + 2 / (t + 3 / ...)) is not.
    rest = torch.zeros_like(far)
    for k in range(_DEPTH, 1, -1):
        rest = k / (far + rest)
    far_mean = 1 / (far + rest)
    return torch.where(is_near, mean, far_mean), torch.where(is_near, 1 - near * mean, rest * far_mean)


@register_kl(ShiftedNormalTails, Normal)
@kl_in_float32
def _kl_normal(p: ShiftedNormalTails, q: Normal) -> Tensor:
    log_peak = -(q.scale * math.sqrt(2 * math.pi)).log()
    return p.squared_deviation(q.loc) / (2 * q.scale**2) - log_peak - p.entropy()


@register_kl(ShiftedNormalTails, Laplace)
@kl_in_float32
def _kl_laplace(p: ShiftedNormalTails, q: Laplace) -> Tensor:
    return p.absolute_deviation(q.loc) / q.scale + (2 * q.scale).log() - p.entropy()


@tail_power.register
def _tail_power(distribution: ShiftedNormalTails) -> float:
    return 2


@register_kl(ShiftedNormalTails, ShiftedNormalTails)
@kl_in_float32
def _kl_shifted_tails(p: ShiftedNormalTails, q: ShiftedNormalTails) -> Tensor:
    quadratic = p.squared_deviation(q.loc) / (2 * q.scale**2)
    return quadratic + q.cut * p.absolute_deviation(q.loc) / q.scale - q.log_peak - p.entropy()
