r"""`Information`: how much each latent of a code tells about the data, whatever posterior and prior there are.

.. math:: I_j = \frac1N \sum_n KL\Big(q(z_j|x_n) \,\Big\|\, \bar q_j\Big), \qquad \bar q_j = \frac1N \sum_n q(z_j|x_n),

the mutual information, in nats, of the latent and the datum it is drawn for. The divergence from a prior is this and
more (Hoffman & Johnson, 2016),

.. math:: \frac1N \sum_n KL(q(z_j|x_n) \| p_j) = I_j + KL(\bar q_j \| p_j),

and the second term says how well the prior describes the latent, nothing of whether it tells data apart. A latent that
idles at a rate of its own, with a slab of its own, has :math:`I_j = 0` and a divergence above 0 from any prior that
does not know them; under a prior that is a mixture over whole codes, or has no density, a latent has no divergence of
its own. :math:`I_j` needs the posterior alone. It is 0 exactly where the posterior is the same for all data, and has no
upward bias: posteriors are known, not sampled. It never exceeds :math:`\log N`.

**How it is computed.** Of a spike-and-slab it is the information of the spike and that of the slab where it is on:

.. math:: I_j = H(\bar\gamma) - \frac1N \sum_n H(\gamma_n)
    + \frac1N \sum_n \gamma_n\, KL\Big(F_n \,\Big\|\, \frac{\sum_m \gamma_m F_m}{\sum_m \gamma_m}\Big).

The first part is exact. In the second each slab is looked at through 16 intervals. By the data-processing inequality
that is a lower bound, still 0 only where nothing differs between intervals, and some percent below the truth where the
truth is small; of a slab much narrower than the spread of all of them it cannot exceed :math:`\log 16 = 2.8` nats.

**Which latents are informative.** Those with

.. math:: I_j > .01\, \bar\gamma_j + .15\, H(\bar\gamma_j).

A dense latent (:math:`\bar\gamma_j = 1`) has to carry a hundredth of a nat, which is what Lucas et al. (2019) call not
collapsed. Of a spike's entropy the datum has to decide some 15%. An idle spike is a coin that is tossed without
looking at the datum, whatever the coin's odds, and while training goes on it is not quite still. A bound in nats alone
would take the trembling of a latent that is on for a tenth of the data for information, or else miss a feature that is
on for one datum of a thousand and then with certainty, which carries .008 nats by its spike. (Any bound is a
convention; `Evaluation.information` holds the numbers themselves.)

A point has no width, and two values of a latent are taken for one if they differ by less than a ten-thousandth of
themselves.

References
    J. Lucas, G. Tucker, R. Grosse, M. Norouzi (2019), Don't blame the ELBO!
    M. D. Hoffman, M. J. Johnson (2016), ELBO surgery: yet another way to carve up the variational evidence lower bound.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from vsc_pyro.distributions import centre, inclusion_logits, inclusion_of, slab_of
from vsc_pyro.distributions.spikes import spike_entropy

_OF_SLAB = 0.01
_OF_SPIKE = 0.15
_INTERVALS = 16
_RESOLUTION = 1e-4
_QUARTILE = 0.6745  # of a standard normal


class Information:
    """The information of each latent, from two passes over the posteriors of the same data.

    Call `look` with all of them, `add` with all of them again, then `nats`. Memory does not grow with the data.
    """

    def __init__(self) -> None:
        self._num_data = 0
        self._on: Tensor | float = 0.0
        self._first: Tensor | float = 0.0
        self._second: Tensor | float = 0.0
        self._spike_entropy: Tensor | float = 0.0
        self._cuts: list[Tensor] = []
        self._mass: list[Tensor] = []
        self._log_mass: Tensor | float = 0.0

    def look(self, posterior: Distribution) -> None:
        """Learn where the slabs lie, in the first pass. `posterior` has `batch_shape` ``(B,)``."""
        gamma, slab = inclusion_of(posterior), _slab_with_cdf(posterior)
        middle, width = centre(slab), _width(slab)
        self._num_data += len(gamma)
        self._on += _sum(gamma)
        self._first += _sum(gamma * middle)
        self._second += _sum(gamma * (middle**2 + width**2))
        logits = inclusion_logits(posterior)
        if logits is not None:
            self._spike_entropy += _sum(spike_entropy(logits))

    def add(self, posterior: Distribution) -> None:
        """Count the mass of slabs in each interval, in the second pass."""
        gamma, slab = inclusion_of(posterior), _slab_with_cdf(posterior)
        if not self._cuts:
            self._cuts = [cut.to(gamma) for cut in self._quantiles()]
            self._mass = [torch.zeros_like(self._on) for _ in range(_INTERVALS)]
        below = torch.zeros_like(gamma)
        for i in range(_INTERVALS):
            # Outside its support a distribution of a user's own may say anything.
            is_last = i == _INTERVALS - 1
            upto = torch.ones_like(gamma) if is_last else slab.cdf(self._cuts[i]).nan_to_num(0.0).clamp(0, 1)
            mass = (upto - below).clamp(min=0)
            self._mass[i] = self._mass[i] + _sum(gamma * mass)
            self._log_mass += _sum(gamma * torch.xlogy(mass, mass))
            below = upto

    def _quantiles(self) -> list[Tensor]:
        """Cuts at the quantiles of a normal distribution with the mean and variance of all slabs together."""
        on = self._on.clamp(min=torch.finfo(torch.float64).tiny)
        loc = self._first / on
        scale = (self._second / on - loc**2).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        shares = torch.arange(1, _INTERVALS, dtype=torch.float64) / _INTERVALS
        return [loc + scale * z for z in torch.special.ndtri(shares).tolist()]

    def nats(self) -> Tensor:
        """The information of each latent, shape ``(J,)``, float64, on the CPU."""
        rate = self._on / self._num_data
        spike = _entropy(rate) - self._spike_entropy / self._num_data
        total = sum(torch.xlogy(mass, mass) for mass in self._mass)
        slab = (self._log_mass - total + torch.xlogy(self._on, self._on)) / self._num_data
        return (spike.clamp(min=0) + slab.clamp(min=0)).flatten()


def is_informative(nats: Tensor, usage: Tensor) -> Tensor:
    """Which latents carry information about the data; see the module's docstring. Bool, shape ``(J,)``.

    Args:
        nats: information of each latent, shape ``(J,)``.
        usage: mean inclusion probability of each latent, likewise.
    """
    usage = usage.double().clamp(0, 1)
    return nats > _OF_SLAB * usage + _OF_SPIKE * _entropy(usage)


def _sum(values: Tensor) -> Tensor:
    return values.cpu().double().sum(0)


def _entropy(rate: Tensor) -> Tensor:
    return -torch.xlogy(rate, rate) - torch.xlogy(1 - rate, 1 - rate)


def _slab_with_cdf(posterior: Distribution) -> Distribution:
    """The slab, or where that has no cdf and quantiles the normal distribution of its mean and variance.

    A point's is as wide as two values may differ and still be the same. (Of `MultivariateNormal` these are the latents'
    marginals.)
    """
    slab = slab_of(posterior)
    try:
        middle = centre(slab)
        slab.cdf(slab.icdf(torch.full_like(middle, 0.5)))
    except NotImplementedError:
        least = _RESOLUTION * middle.abs() + 1e-12
        deviation = slab.variance.sqrt().nan_to_num(nan=1.0, posinf=1.0)
        return Normal(middle, torch.maximum(deviation, least), validate_args=False)
    return slab


def _width(slab: Distribution) -> Tensor:
    """Half the distance of the quartiles, in a normal distribution's standard deviations: a Cauchy slab has none."""
    like = centre(slab)
    upper, lower = (slab.icdf(torch.full_like(like, share)) for share in (0.75, 0.25))
    return (upper - lower) / (2 * _QUARTILE)
