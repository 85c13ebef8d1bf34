r"""The continuous Bernoulli likelihood, for pixels in [0, 1].

.. math:: p(x; l) = \frac{2h}{\tanh h}\, \lambda^x (1 - \lambda)^{1-x}, \qquad \lambda = \mathrm{sigmoid}(l),\ h = l/2

The factor in front normalises a Bernoulli's cross-entropy on grey levels. Without it the "likelihood" integrates to
less than 1, down to 0 for large logits.

References
    G. Loaiza-Ganem, J. P. Cunningham (2019), The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders.
"""

from __future__ import annotations

import math

import torch
from pyro.distributions import ContinuousBernoulli  # pyright: ignore[reportAttributeAccessIssue]  defined at import
from torch import Tensor

from vsc_pyro.models.decoders.base import PixelDecoder

# Below these values series replace the closed forms, which lose digits to cancellation as h goes to 0.
_SMALL_H = 0.3
_SMALL_LOGIT = 1e-3
# The largest logit to start from: the maximum-likelihood logit of a pixel that is always black is infinite.
_LARGEST_START = 12.0
_HALVINGS = 50


class StableContinuousBernoulli(ContinuousBernoulli):
    r"""`pyro.distributions.ContinuousBernoulli` computed from its logits, exact for all values a network can output.

    torch computes normaliser, moments and draws from probabilities, which in float32 end at :math:`1 - 2^{-23}`. Beyond
    logits of :math:`\pm 16` its log-density is therefore too small (by 1.1 nats a pixel at 50), its gradient wrong
    (white pixels get none) and its mean stuck at 0.937; near 0 its variance is wrong by half. Here, with :math:`L(h) =
    \coth h - 1/h` for h = logits / 2,

    .. math:: \log C = \log 2 + \log(1 + h L), \qquad E x = (1 + L)/2, \qquad Var\, x = L'/4.
    """

    def _cont_bern_log_norm(self) -> Tensor:
        h = self.logits / 2
        return math.log(2) + torch.log1p(h * h * _langevin_ratio(h))

    @property
    def mean(self) -> Tensor:
        h = self.logits / 2
        return (1 + h * _langevin_ratio(h)) / 2

    @property
    def variance(self) -> Tensor:
        h = self.logits / 2
        small = h.abs() < _SMALL_H
        ratio = _langevin_ratio(h)
        near = 1 - 2 * ratio - (h * ratio) ** 2
        safe = torch.where(small, torch.ones_like(h), h)
        decay = torch.exp(-2 * safe.abs())
        far = safe**-2 - 4 * decay / (1 - decay) ** 2
        return torch.where(small, near, far) / 4

    def entropy(self) -> Tensor:
        return -self.log_prob(self.mean)  # the log-density is linear in x

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        far, small, rate = self._regions()
        # A truncated exponential that decays from 1 if the logit is positive, and from 0 if it is negative.
        up = 1 - torch.expm1(-rate * (1 - value)) / torch.expm1(-rate)
        down = torch.expm1(-rate * value) / torch.expm1(-rate)
        near = value - self.logits * value * (1 - value) / 2
        return torch.where(small, near, torch.where(far, up, down))

    def icdf(self, value: Tensor) -> Tensor:
        far, small, rate = self._regions()
        up = 1 + torch.log1p((1 - value) * torch.expm1(-rate)) / rate
        down = -torch.log1p(value * torch.expm1(-rate)) / rate
        near = value + self.logits * value * (1 - value) / 2
        return torch.where(small, near, torch.where(far, up, down))

    def _regions(self) -> tuple[Tensor, Tensor, Tensor]:
        small = self.logits.abs() < _SMALL_LOGIT
        return self.logits > 0, small, torch.where(small, torch.ones_like(self.logits), self.logits.abs())


def _langevin_ratio(h: Tensor) -> Tensor:
    r""":math:`(\coth h - 1/h) / h`, even, 1/3 at 0."""
    small = h.abs() < _SMALL_H
    far = torch.where(small, torch.ones_like(h), h)
    square = torch.where(small, h, torch.zeros_like(h)) ** 2
    series = 1 / 3 - square * (1 / 45 - square * (2 / 945 - square * (1 / 4725 - square * (2 / 93555))))
    return torch.where(small, series, (1 / torch.tanh(far) - 1 / far) / far)


class ContinuousBernoulliDecoder(PixelDecoder):
    r"""Independent continuous Bernoulli pixels with logits f(z) (Loaiza-Ganem & Cunningham, 2019).

    For grey levels in [0, 1], on which a Bernoulli's cross-entropy is not a likelihood. Arguments, shapes and errors
    are those of `BernoulliDecoder`, covariates included; data must lie in [0, 1].

    The log-density has no upper limit: on a pixel that is always black (x = 0) it is about :math:`\log |l|`, 2.8 nats
    at a logit of -16, 4.6 at -100. Compare it only with densities of the same data in the same units, never with a
    Bernoulli's probabilities.

    >>> import vsc_pyro as vsc
    >>> decoder = vsc.ContinuousBernoulliDecoder(latent_dim=5, output_shape=64, hidden=())
    >>> decoder(torch.zeros(3, 5)).log_prob(torch.rand(3, 64)).shape
    torch.Size([3])
    """

    def _outputs_of(self, mean: Tensor, scale: Tensor, num_data: int) -> Tensor:
        # Bisection: the likelihood's mean rises with the logit.
        low, high = torch.full_like(mean, -_LARGEST_START), torch.full_like(mean, _LARGEST_START)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            is_above = StableContinuousBernoulli(logits=middle).mean > mean
            low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
        return (low + high) / 2

    def _likelihood(self, outputs: Tensor) -> StableContinuousBernoulli:
        return StableContinuousBernoulli(logits=outputs)
