"""The normal likelihood, for real data, with a scale that is fixed or learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
from pyro.distributions import Independent, Normal
from torch import Tensor, nn

from vsc_pyro._arguments import choice, positive_float
from vsc_pyro.distributions import ContextRows, LinearNormal
from vsc_pyro.models.decoders.base import PixelDecoder

if TYPE_CHECKING:
    from jaxtyping import Float

# Share of the data's standard deviation to start from: under all of it, a latent that explains little is switched off.
_SHARE = 0.4


def _amplitude(scale: float, floor: float) -> float:
    return math.sqrt((scale**2 - floor**2) / (1 - floor**2))


class NormalDecoder(PixelDecoder):
    r"""Independent normal pixels, :math:`p(x|z) = \prod_d N(x_d; f_d(z), \sigma_d^2)`; the scale does not depend on z.

    With ``hidden=()``, f is linear: sparse coding with `dictionary` as its atoms. The likelihood is then a
    `vsc_pyro.distributions.LinearNormal`, which can be trained without sampling: ``fit(..., objective="exact")``.

    **The scale** decides which latents are used: far above the data's spread no latent pays for its KL, far below all
    do. The default, ``scale="data"``, is 0.4 times the standard deviation s of the training data around their mean. If
    the code has fewer latents than the datum has pixels, one scale for all pixels is learned from there. Otherwise it
    stays fixed: such a code can copy the datum, and the scale is not identified. The network's outputs are in units of
    s, :math:`f(z) = s\,g(z)`, so that data in other units, :math:`a x + b`, are fitted alike. `prepare`, which
    `vsc_pyro.fit` calls, measures s; before that, s is 1.

    **A learned scale needs a floor.** On a pixel that is constant in all data (a border) the log-density
    :math:`-\log(\sigma\sqrt{2\pi})` grows without limit as :math:`\sigma \to 0`. The bound then measures how far the
    optimiser got, and the gradient of that pixel's mean, error / :math:`\sigma^2`, dominates all others. A tiny floor
    does not help: a floor of 0.001 earns 6.9 nats a pixel over a scale of 1, with gradients multiplied by a million.
    The default floor is therefore a tenth of `scale` (of s, for ``scale="data"``):

    .. math:: \sigma_d^2 = m^2 + (s^2 - m^2)\, a_d^2, \qquad m = \mathrm{min\_scale},\ s = \mathrm{scale},

    with parameters a. No log-density of a pixel exceeds :math:`-\log(m\sqrt{2\pi})` (1.38 nats for m = 0.1), shrinking
    a scale earns at most :math:`\log(s/m) = 2.30` nats, and gradients of the mean grow at most a hundredfold. A
    constant pixel reaches the floor at a finite a = 0, where the gradient of a vanishes. Scales above m are
    maximum-likelihood estimates, as they are without a floor, and follow the units of the data if `scale` does.

    **Covariates** c, such as the batch of a row as zeros and a one, have an effect a on each value, which starts at 0:
    the mean is :math:`f_d(z) + \sum_k a_{dk} c_k`. They are the context of a datum: `Dataset` and its `context` place
    them behind the values,

    .. math:: x = (x_1, \dots, x_D, c_1, \dots, c_K),

    and the encoder's `input_shape` is the length D + K of such a row, so that it can leave the effects out of the code.
    Standardise covariates as you do values. All bounds are those of :math:`\log p(x | c)`. Draws of the prior and
    figures of codes have the typical context, the mean covariates of the training data; predictions and
    reconstructions of a datum have its own. R2 compares values minus the effect of :math:`c` on them, relative to the
    typical context. The property `effects` holds a, in units of the data.

    Args:
        latent_dim, output_shape, hidden, activation, trunk: see `BernoulliDecoder`.
        scale: standard deviation of the pixels given z, in units of the data; a learned scale starts there. ``"data"``
            measures it on the training data.
        variance: ``"fixed"``; ``"shared"``, learned, one for all pixels; ``"per-pixel"``, learned, one for each. None
            means ``"shared"`` for ``scale="data"`` and fewer latents than pixels, else ``"fixed"``.
        min_scale: floor of a learned scale, in units of the data (of s, for ``scale="data"``); None for a tenth of
            `scale`.
        num_covariates: number K of columns behind the values of a row; then `output_shape` is their number D.

    Shapes:
        z ``(*, J)``; the distribution has `batch_shape` ``(*)`` and `event_shape` `output_shape`, or ``(D + K,)``.

    Raises:
        ValueError: a size below 1, covariates of data of several dimensions, a scale that is not above 0 or not above
            `min_scale`, a `min_scale` for a fixed variance, an unknown activation or variance (the message lists the
            known ones), both `hidden` and a trunk, or a trunk whose output does not fit `output_shape`.

    >>> import vsc_pyro as vsc
    >>> decoder = vsc.NormalDecoder(latent_dim=5, output_shape=(1, 8, 8), hidden=(), scale=0.1)
    >>> decoder.dictionary.shape, round(decoder.scale.item(), 3)
    (torch.Size([5, 1, 8, 8]), 0.1)
    """

    initial_scale: Tensor
    min_scale: Tensor
    unit: Tensor | None

    def __init__(
        self,
        latent_dim: int,
        output_shape: int | Sequence[int],
        hidden: int | Sequence[int] | None = None,
        activation: str = "relu",
        scale: float | Literal["data"] = "data",
        variance: str | None = None,
        min_scale: float | None = None,
        trunk: nn.Module | None = None,
        *,
        num_covariates: int = 0,
    ) -> None:
        super().__init__(latent_dim, output_shape, hidden, activation, trunk, num_covariates=num_covariates)
        self.follows_data = scale == "data"
        if variance is None:
            identified = self.latent_dim < math.prod(self.output_shape)
            variance = "shared" if self.follows_data and identified else "fixed"
        self.variance = variance
        share = _SHARE if variance == "fixed" else 1.0
        scale = share if scale == "data" else positive_float("scale", scale)
        amplitude_shape = choice("variance", variance, {"fixed": None, "shared": (), "per-pixel": self.output_shape})
        # Buffers, because a checkpoint must restore the scale whatever the decoder was built with.
        self.register_buffer("initial_scale", torch.tensor(scale))
        self.register_buffer("unit", torch.ones(()) if self.follows_data else None)
        if not self.follows_data:
            self._start_effects(scale)
        if amplitude_shape is None:
            if min_scale is not None:
                raise ValueError(f"min_scale={min_scale!r} is the floor of a learned scale, and variance='fixed'")
            return
        min_scale = scale / 10 if min_scale is None else positive_float("min_scale", min_scale)
        if min_scale >= scale:
            raise ValueError(f"min_scale must be below scale, where learning starts, got {min_scale} and {scale}")
        self.register_buffer("min_scale", torch.tensor(min_scale))
        start = _amplitude(max(_SHARE, min_scale), min_scale) if self.follows_data else 1.0
        self.amplitude = nn.Parameter(torch.full(amplitude_shape, start))

    def _outputs_of(self, mean: Tensor, scale: Tensor, num_data: int) -> Tensor:
        if self.unit is None:
            return mean
        self.unit.copy_(scale)
        self._check_unit()
        return mean / scale

    def _check_unit(self) -> None:
        """Raise `ValueError` if squared errors or precisions of data in this unit are beyond the type's range."""
        least = self._in_units(getattr(self, "min_scale", self.initial_scale))
        error = math.prod(self.output_shape) * self._in_units(torch.ones_like(least)).square()
        if not torch.stack((least.square().reciprocal(), error)).isfinite().all():
            raise ValueError(
                f"the standard deviation of the data is {float(cast('Tensor', self.unit)):.3g}, and {least.dtype} does "
                "not hold the squares of such numbers; divide the data by it"
            )

    @property
    def scale(self) -> Tensor:
        r"""Standard deviation :math:`\sigma` of the pixels given z: shape ``()``, or `output_shape` if per pixel."""
        if self.variance == "fixed":
            return self._in_units(self.initial_scale)
        floor = self.min_scale**2
        return self._in_units(torch.sqrt(floor + (self.initial_scale**2 - floor) * self.amplitude**2))

    def _in_units(self, values: Tensor) -> Tensor:
        return values if self.unit is None else values * self.unit

    @property
    def dictionary(self) -> Tensor:
        return self._in_units(super().dictionary)

    @property
    def effects(self) -> Tensor | None:
        """The effects a of covariates in units of the data, shape ``(D, K)``; None without covariates."""
        return None if self.effect_weight is None else self._in_units(self.effect_weight)

    def comparable(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.typical is None:
            return x, x
        values, context = self._parted(x)
        values = values + (self.typical - context) @ cast("Tensor", self.effects).T
        return values, torch.cat([values, self.typical.expand_as(context)], 1)

    def pixels(self, z: Tensor) -> Tensor:
        return self._in_units(super().pixels(z))

    def extra_repr(self) -> str:
        floor = "" if self.variance == "fixed" else f", min_scale={float(self.min_scale):g}"
        scale = "'data'" if self.follows_data else f"{float(self.initial_scale):g}"
        return ", ".join(filter(None, [f"variance={self.variance!r}, scale={scale}{floor}", super().extra_repr()]))

    def _likelihood(self, outputs: Tensor) -> Normal:
        return Normal(outputs, self.scale)

    def forward(self, z: Float[Tensor, "*draws latents"]) -> Independent | ContextRows:
        if not self.is_linear:
            return super().forward(z)
        bias = self._in_units(self.own_layer.bias.unflatten(0, self.output_shape))
        linear = LinearNormal(z, self.dictionary, bias, self.scale)
        if self.typical is None:
            return linear
        return ContextRows(linear.mean, self.typical, self._likelihood, self.effects, linear)
