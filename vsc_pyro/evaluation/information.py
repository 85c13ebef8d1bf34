r"""`Information`: how much each latent of a code tells about the data, for any posterior and any prior.

.. math:: I_j = \frac1N \sum_n KL\Big(q(z_j|x_n) \,\Big\|\, \bar q_j\Big), \qquad \bar q_j = \frac1N \sum_n q(z_j|x_n),

is the mutual information, in nats, of the latent and the index of the datum. The divergence from a prior is larger
(Hoffman & Johnson, 2016):

.. math:: \frac1N \sum_n KL(q(z_j|x_n) \| p_j) = I_j + KL(\bar q_j \| p_j).

The second term measures how well the prior describes the latent; it does not measure whether the latent tells data
apart. A latent that idles at a rate of its own has :math:`I_j = 0`, but a positive divergence from most priors. And
under a mixture over whole codes or an improper prior, single latents have no divergence at all. :math:`I_j` needs the
posterior alone. It is 0 exactly if the posterior is the same for all data, it is at most :math:`\log N`, and it has no
upward bias because posteriors are known and not sampled.

**Computation.** The information of a spike-and-slab is that of its spike plus that of its slab while the latent is on:

.. math:: I_j = H(\bar\gamma) - \frac1N \sum_n H(\gamma_n)
    + \frac1N \sum_n \gamma_n\, KL\Big(F_n \,\Big\|\, \frac{\sum_m \gamma_m F_m}{\sum_m \gamma_m}\Big).

The first part is exact. The second part uses the mass of each slab in 16 intervals. By the data-processing inequality
this gives a lower bound. The bound is 0 only if all slabs have equal masses, it is some percent too low if the truth is
small, and it is at most :math:`\log 16 = 2.8` nats.

**Informative latents** are those with

.. math:: I_j > .01\, \bar\gamma_j + .15\, H(\bar\gamma_j) \quad\text{and}\quad N \bar\gamma_j \ge \tfrac12.

A dense latent (:math:`\bar\gamma_j = 1`) needs a hundredth of a nat, the threshold of Lucas et al. (2019) for a
collapsed latent. Of a spike's entropy the datum must decide 15%. An idle spike has a fixed rate for all data, and that
rate fluctuates slightly during training. A threshold in nats alone fails in one of two ways. It counts the fluctuations
of a latent that is on for a tenth of the data, or it misses a feature that is on with certainty for one datum in a
thousand, whose spike carries .008 nats. The second condition leaves out latents that are on for none of the data: near
probability 0 the datum may decide much of a tiny entropy. Any threshold is a convention; `Evaluation.information` holds
the numbers.

A point posterior has no width. Two values of a latent count as equal if they differ by less than a ten-thousandth.

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

_NATS_OF_SLAB = 0.01
_SHARE_OF_SPIKE_ENTROPY = 0.15
_LEAST_ON = 0.5  # data
_INTERVALS = 16
_RESOLUTION = 1e-4
_QUARTILE = 0.6745  # of a standard normal


class Information:
    """The information of each latent, from two passes over the posteriors of the same data.

    Call `locate` with every batch, then `count` with every batch, then `nats`. Memory does not grow with the data.

    Example:
        >>> import torch
        >>> from torch.distributions import Normal
        >>> from vsc_pyro.evaluation.information import Information
        >>> posterior = Normal(torch.tensor([[-9.0, 0.0], [9.0, 0.0]]), 1.0)  # two data, two latents
        >>> information = Information()
        >>> information.locate(posterior)
        >>> information.count(posterior)
        >>> information.nats().round(decimals=2)  # log 2, and nothing
        tensor([0.6900, 0.0000], dtype=torch.float64)
    """

    def __init__(self) -> None:
        zero = torch.zeros((), dtype=torch.float64)
        self._num_data = 0
        self._on = self._first = self._second = self._spike_entropy = self._log_mass = zero
        self._cuts: list[Tensor] = []
        self._mass: list[Tensor] = []

    def locate(self, posterior: Distribution) -> None:
        """First pass: add a batch of posteriors, `batch_shape` ``(B,)``, to the moments that place the intervals."""
        gamma, slab = inclusion_of(posterior), _slab_with_cdf(posterior)
        middle, width = centre(slab), _width(slab)
        self._num_data += len(gamma)
        self._on = self._on + _sum(gamma)
        self._first = self._first + _sum(gamma * middle)
        self._second = self._second + _sum(gamma * (middle**2 + width**2))
        logits = inclusion_logits(posterior)
        if logits is not None:
            self._spike_entropy = self._spike_entropy + _sum(spike_entropy(logits))

    def count(self, posterior: Distribution) -> None:
        """Second pass: add the mass that the slabs of a batch have in each interval."""
        gamma, slab = inclusion_of(posterior), _slab_with_cdf(posterior)
        if not self._cuts:
            self._cuts = [cut.to(gamma) for cut in self._quantiles()]
            self._mass = [torch.zeros_like(self._on) for _ in range(_INTERVALS)]
        below = torch.zeros_like(gamma)
        for i in range(_INTERVALS):
            # A user's distribution may return any value, NaN included, outside its support.
            is_last = i == _INTERVALS - 1
            upto = torch.ones_like(gamma) if is_last else slab.cdf(self._cuts[i]).nan_to_num(0.0).clamp(0, 1)
            mass = (upto - below).clamp(min=0)
            self._mass[i] = self._mass[i] + _sum(gamma * mass)
            self._log_mass = self._log_mass + _sum(gamma * torch.xlogy(mass, mass))
            below = upto

    def _quantiles(self) -> list[Tensor]:
        """Return cuts at the quantiles of a normal distribution with the mean and variance of all slabs together."""
        on = self._on.clamp(min=torch.finfo(torch.float64).tiny)
        loc = self._first / on
        scale = (self._second / on - loc**2).clamp(min=torch.finfo(torch.float32).tiny).sqrt()
        shares = torch.arange(1, _INTERVALS, dtype=torch.float64) / _INTERVALS
        return [loc + scale * z for z in torch.special.ndtri(shares).tolist()]

    def nats(self) -> Tensor:
        """Return the information of each latent, shape ``(J,)``, float64, on the CPU."""
        rate = self._on / self._num_data
        spike = _entropy(rate) - self._spike_entropy / self._num_data
        total = sum(torch.xlogy(mass, mass) for mass in self._mass)
        slab = (self._log_mass - total + torch.xlogy(self._on, self._on)) / self._num_data
        return (spike.clamp(min=0) + slab.clamp(min=0)).flatten()


def is_informative(nats: Tensor, usage: Tensor, num_data: int) -> Tensor:
    """Return True for each latent that carries information about the data, bool, shape ``(J,)``.

    The threshold is that of the module's docstring.

    Args:
        nats: information of each latent, shape ``(J,)``.
        usage: mean inclusion probability of each latent, shape ``(J,)``.
        num_data: number of data in these means.
    """
    usage = usage.double().clamp(0, 1)
    tells = nats > _NATS_OF_SLAB * usage + _SHARE_OF_SPIKE_ENTROPY * _entropy(usage)
    return tells & (num_data * usage >= _LEAST_ON)


def _sum(values: Tensor) -> Tensor:
    return values.cpu().double().sum(0)


def _entropy(rate: Tensor) -> Tensor:
    return -torch.xlogy(rate, rate) - torch.xlogy(1 - rate, 1 - rate)


def _slab_with_cdf(posterior: Distribution) -> Distribution:
    """Return the slab; if it has no cdf or quantiles, the normal distribution of its mean and variance.

    The slab of a point has the width at which two values count as different. For a `MultivariateNormal` the result
    holds the latents' marginals.
    """
    slab = slab_of(posterior)
    middle = centre(slab)
    try:
        slab.cdf(slab.icdf(torch.full_like(middle, 0.5)))
    except NotImplementedError:
        least = _RESOLUTION * middle.abs() + 1e-12
        deviation = slab.variance.sqrt().nan_to_num(nan=1.0, posinf=1.0)
        return Normal(middle, torch.maximum(deviation, least), validate_args=False)
    return slab


def _width(slab: Distribution) -> Tensor:
    """Return the interquartile range over that of a standard normal: a scale that Cauchy slabs have too."""
    like = centre(slab)
    upper, lower = (slab.icdf(torch.full_like(like, share)) for share in (0.75, 0.25))
    return (upper - lower) / (2 * _QUARTILE)
