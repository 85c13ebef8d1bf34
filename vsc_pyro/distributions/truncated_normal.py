r"""The normal distribution truncated to positive numbers, a slab of features that are only added to the data.

.. math:: F(z) = \frac{1}{\sigma\, \Phi(\mu / \sigma)}\, \phi\!\left(\frac{z - \mu}{\sigma}\right), \qquad z > 0.

With :math:`t = -\mu / \sigma`, the excess :math:`y = z / \sigma` is that of `vsc_pyro.distributions.normal_tails`, for
a t of either sign. Where :math:`t \ge 0`, everything is written with the hazard :math:`h(t) = \phi(t) / \Phi(-t)`, so
that nothing under- or overflows if :math:`\mu` lies far below zero; where :math:`t < 0`, with :math:`\Phi(-t) \ge 1/2`.
The moments are :math:`E\,z = \sigma r` and :math:`\mathrm{Var}\,z = \sigma^2 (1 - r h)` with :math:`r = h - t`. A draw
solves :math:`P(Y > y) = u`; implicit differentiation gives :math:`dy / dt = h(t) / h(t + y) - 1`, which is
:math:`u\, e^{y (t + y / 2)} - 1`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all, lazy_property
from torch.types import _size

from vsc_pyro.distributions.families import scale_of, tail_power
from vsc_pyro.distributions.normal_tails import excess_beyond, excess_moments, hazard

if TYPE_CHECKING:
    from jaxtyping import Float

_LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)


class TruncatedNormal(TorchDistribution):
    r"""The distribution of :math:`\zeta \sim N(\mu, \sigma^2)` given :math:`\zeta > 0`.

    Draws have pathwise gradients in both parameters. Its divergences from itself, `HalfNormal`, `Exponential` and
    `Normal` have closed forms.

    Args:
        loc: :math:`\mu`, the mean before truncation; it may lie far below 0.
        scale: :math:`\sigma`, the standard deviation before truncation, above 0.
        validate_args: as in `torch.distributions`.

    Shapes:
        `batch_shape` is the parameters' broadcast; `event_shape` is ``()``.

    Raises:
        ValueError: a scale that is not positive.

    References:
        N. L. Johnson, S. Kotz, N. Balakrishnan (1994), Continuous univariate distributions, volume 1.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> slab = vsc.TruncatedNormal(torch.tensor([-30.0, 0.0, 5.0]), 1.0)
        >>> slab.mean
        tensor([0.0333, 0.7979, 5.0000])
        >>> bool((slab.rsample((100,)) > 0).all())
        True
    """

    arg_constraints: ClassVar[Any] = {"loc": constraints.real, "scale": constraints.positive}
    support: ClassVar[Any] = constraints.positive
    has_rsample = True

    def __init__(self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: TruncatedNormal | None = None) -> TruncatedNormal:
        new = cast("TruncatedNormal", self._get_checked_instance(TruncatedNormal, _instance))
        batch_shape = torch.Size(batch_shape)
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        super(TruncatedNormal, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @lazy_property
    def cut(self) -> Tensor:
        r"""The truncation in standard deviations, :math:`t = -\mu / \sigma`."""
        return -self.loc / self.scale

    @property
    def _sides(self) -> tuple[Tensor, Tensor, Tensor]:
        """A mask of locations up to 0, and t where it is valid in the formulas of either side."""
        return self.cut >= 0, self.cut.clamp(min=0), self.cut.clamp(max=0)

    @lazy_property
    def _hazard_below(self) -> Tensor:
        below = self._sides[2]
        return torch.exp(-0.5 * below**2 - _LOG_ROOT_2_PI) / torch.special.ndtr(-below)

    @lazy_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        is_far, far, near = self._sides
        mean, square = excess_moments(far)
        near_mean = self._hazard_below - near
        variance = torch.where(is_far, square - mean**2, 1 - near_mean * self._hazard_below)
        return torch.where(is_far, mean, near_mean), variance

    @property
    def mean(self) -> Tensor:
        r""":math:`\sigma r`, shape `batch_shape`."""
        return self.scale * self._moments[0]

    @property
    def variance(self) -> Tensor:
        r""":math:`\sigma^2 (1 - r h)`, shape `batch_shape`."""
        return self.scale**2 * self._moments[1]

    def entropy(self) -> Tensor:
        r"""Return :math:`\log \sigma - \log h + (1 + t r) / 2` in nats, shape `batch_shape`."""
        is_far, far, near = self._sides
        outside = 0.5 * (1 + far * excess_moments(far)[0]) - hazard(far).log()
        inside = 0.5 * (1 + near * self._hazard_below) + _LOG_ROOT_2_PI + torch.special.log_ndtr(-near)
        return self.scale.log() + torch.where(is_far, outside, inside)

    def log_prob(self, value: Float[Tensor, "*value"]) -> Float[Tensor, "*broadcast"]:
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self.expected_log_prob(value, torch.zeros_like(value))
        return log_prob.masked_fill(value <= 0, -math.inf)

    def expected_log_prob(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the mean of the log-density, which is quadratic, of positive numbers with this mean and variance."""
        is_far, far, near = self._sides
        excess, deviation = mean / self.scale, (mean - self.loc) / self.scale
        outside = hazard(far).log() - excess * (far + 0.5 * excess)
        inside = -0.5 * deviation**2 - _LOG_ROOT_2_PI - torch.special.log_ndtr(-near)
        return torch.where(is_far, outside, inside) - self.scale.log() - variance / (2 * self.scale**2)

    def cdf(self, value: Tensor) -> Tensor:
        is_far, far, near = self._sides
        excess = value / self.scale
        outside = hazard(far) / hazard(far + excess) * torch.exp(-excess * (far + 0.5 * excess))
        inside = torch.special.ndtr(-(near + excess)) / torch.special.ndtr(-near)
        return 1 - torch.where(is_far, outside, inside)

    def icdf(self, value: Tensor) -> Tensor:
        return self.scale * excess_beyond(self.cut, -torch.log1p(-value))

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:
        cut = self.cut.expand(self._extended_shape(sample_shape))
        with torch.no_grad():
            level = torch.empty_like(cut).exponential_()
            excess = excess_beyond(cut, level)
            far, near = cut.clamp(min=0), cut.clamp(max=0)
            outside, inside = hazard(far) / hazard(far + excess), torch.exp(excess * (near + 0.5 * excess) - level)
            slope = torch.where(cut >= 0, outside, inside) - 1
        excess = excess + slope * (cut - cut.detach())
        # A draw of zero would be a spike that is off.
        return (self.scale * excess).clamp(min=torch.finfo(excess.dtype).tiny)


tail_power.register(TruncatedNormal, lambda p: 2)
scale_of.register(TruncatedNormal, lambda p: p.stddev)
