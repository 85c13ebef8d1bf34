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

import functools
import math
import operator
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all, lazy_property
from torch.types import _size

from vsc_pyro.distributions.elementwise import squared_distance, unexpanded
from vsc_pyro.distributions.families import scale_of, tail_power
from vsc_pyro.distributions.normal_tails import excess_beyond, hazard

if TYPE_CHECKING:
    from jaxtyping import Float

_LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)
# Where differences of large numbers lose more than a continued fraction does, and the depth of that.
_FRACTIONS = {torch.float32: (2.5, 12), torch.float64: (5.0, 16)}


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
        return self._once[2].expand(self.batch_shape)

    @lazy_property
    def _once(self) -> tuple[Tensor, Tensor, Tensor]:
        """Location, scale and t without the copies that `expand` makes."""
        loc, scale = unexpanded(self.loc), unexpanded(self.scale)
        return loc, scale, -loc / scale

    @lazy_property
    def _sides(self) -> tuple[Tensor, Tensor, Tensor]:
        """A mask of locations up to 0, and t where it is valid in the formulas of either side."""
        # Unlike `clamp`, this passes the gradient of t at 0, where a prior's slab starts.
        cut = self._once[2]
        is_far, zero = cut >= 0, torch.zeros_like(cut)
        return is_far, torch.where(is_far, cut, zero), torch.where(is_far, zero, cut)

    @lazy_property
    def _excess(self) -> tuple[Tensor, ...]:
        cut = self._once[2]
        # In fewer digits the variance is a difference of close numbers.
        exact = cut.float() if cut.dtype in (torch.float16, torch.bfloat16) else cut
        return tuple(part.to(cut.dtype) for part in cast("tuple[Tensor, ...]", Excess.apply(exact)))

    @property
    def mean(self) -> Tensor:
        r""":math:`\sigma r`, shape `batch_shape`."""
        return (self._once[1] * self._excess[2]).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        r""":math:`\sigma^2 (1 - r h)`, shape `batch_shape`."""
        return (self._once[1].square() * self._excess[3]).expand(self.batch_shape)

    def entropy(self) -> Tensor:
        r"""Return :math:`\log \sigma - \log h + (1 + t r) / 2` in nats, shape `batch_shape`."""
        log_peak, slope, *_ = self._excess
        _, scale, cut = self._once
        return torch.addcmul(scale.log() + 0.5 - log_peak, cut, slope, value=0.5).expand(self.batch_shape)

    def log_prob(self, value: Float[Tensor, "*value"]) -> Float[Tensor, "*broadcast"]:
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self.expected_log_prob(value, value.new_zeros(()))
        return log_prob.masked_fill(value <= 0, -math.inf)

    def expected_log_prob(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the mean of the log-density, which is quadratic, of positive numbers with this mean and variance."""
        is_far, far, _ = self._sides
        loc, scale, _ = self._once
        peak = torch.where(is_far, torch.zeros_like(loc), loc)
        linear = torch.addcmul(self._excess[0] - scale.log(), mean, -far / scale)
        return torch.addcmul(linear, squared_distance(mean, peak) + variance, -0.5 / scale.square())

    def cdf(self, value: Tensor) -> Tensor:
        is_far, far, near = self._sides
        excess = value / self.scale
        outside = hazard(far) / hazard(far + excess) * torch.exp(-excess * (far + 0.5 * excess))
        inside = torch.special.ndtr(-(near + excess)) / torch.special.ndtr(-near)
        return (1 - torch.where(is_far, outside, inside)).masked_fill(value <= 0, 0.0)

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


class Excess(torch.autograd.Function):
    r"""Functions of the cut t: log-density at the peak, its slope in t, mean r, variance v, and the slope of v in t.

    The density of the excess has its peak at 0 for :math:`t \ge 0`, else at -t. Derivatives are closed: r falls by v,
    and v by the third cumulant. For large t, the mean is :math:`1 / (t + 2 / (t + 3 / (t + \dots)))`, and the ratios of
    a moment to the one before it are the parts of this fraction. The last slope is a number without gradient.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(cut: Tensor) -> tuple[Tensor, ...]:
        start, depth = _FRACTIONS.get(cut.dtype, _FRACTIONS[torch.float32])
        near, far = cut.clamp(max=start), cut.clamp(min=start)
        survival = torch.erfc(near * math.sqrt(0.5)).mul_(0.5)
        hazard = torch.exp(near.square().mul_(-0.5).sub_(_LOG_ROOT_2_PI)).div_(survival)
        mean = hazard - near
        variance = 1 - mean * hazard
        third = hazard * (variance - mean.square())
        # The rest of the fraction is close to the root of rest * (far + rest) = depth.
        rest, parts = 2 / (far + (far.square() + 4 * depth).sqrt()), []
        for k in range(depth, 1, -1):
            rest = torch.add(far, rest, alpha=k).reciprocal_()
            parts.append(rest)
        ratio_3, ratio_2, far_mean = 3 * parts[-3], 2 * parts[-2], parts[-1]
        of_ratios = far_mean * (3 * ratio_2 - 2 * far_mean) - ratio_2 * ratio_3
        is_far, is_positive = cut >= start, cut >= 0
        mean = torch.where(is_far, far_mean, mean)
        variance = torch.where(is_far, far_mean * (ratio_2 - far_mean), variance)
        third = torch.where(is_far, far_mean * of_ratios, third)
        hazard = torch.where(is_far, far + far_mean, hazard)
        log_peak = torch.where(is_positive, hazard, math.exp(-_LOG_ROOT_2_PI) / survival).log_()
        return log_peak, torch.where(is_positive, mean, hazard), mean, variance, third

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Tensor | None:
        cut, slope, mean, variance, third = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again; for a large t, less precise
            third = variance * (2 * mean + cut) - mean
        of_slope = torch.where(cut >= 0, -variance, slope * mean)
        derivatives = (slope, of_slope, -variance, third)
        parts = [g * d for g, d in zip(gradients, derivatives, strict=False) if g is not None]
        return functools.reduce(operator.add, parts) if parts else None


tail_power.register(TruncatedNormal, lambda p: 2)
scale_of.register(TruncatedNormal, lambda p: p.stddev)
