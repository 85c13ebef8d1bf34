"""What a distribution has, and one number that stands for it."""

from __future__ import annotations

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Bernoulli, Cauchy, Distribution, Independent, MixtureSameFamily, StudentT
from torch.nn.functional import logsigmoid

from vsc_pyro.distributions.spike_slab import SpikeSlab


def is_point(distribution: Distribution) -> bool:
    """Whether the distribution is a point (`Delta`), which has no density."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return isinstance(distribution, Delta)


def inclusion_logits(distribution: Distribution) -> Tensor | None:
    """Log-odds of P(z != 0) of every coordinate, shape `batch_shape + event_shape`; None where zero has no mass.

    Of a mixture, those of its weighted mean probability.
    """
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    if isinstance(distribution, MixtureSameFamily):
        logits = inclusion_logits(distribution.component_distribution)
        if logits is None:
            return None
        ndims = len(distribution.event_shape)
        weights = distribution.mixture_distribution.logits.reshape(logits.shape[: logits.ndim - ndims] + (1,) * ndims)
        on, off = (torch.logsumexp(weights + logsigmoid(sign * logits), -1 - ndims) for sign in (1, -1))
        return on - off
    return distribution.logits if isinstance(distribution, SpikeSlab) else None


def has_mean(distribution: Distribution) -> bool:
    """Whether the mean is finite; not of Cauchy, nor of a spike-and-slab that has such a slab."""
    if isinstance(distribution, Independent):
        return has_mean(distribution.base_dist)
    if isinstance(distribution, SpikeSlab):
        return has_mean(distribution.slab)
    return not isinstance(distribution, Cauchy)


def inclusion_of(distribution: Distribution) -> Tensor:
    """P(z != 0) of every coordinate: 1 without an atom at zero, and of a point whether it is not zero."""
    logits = inclusion_logits(distribution)
    if logits is not None:
        return logits.sigmoid()
    code = centre(distribution)
    return (code != 0).to(code) if is_point(distribution) else torch.ones_like(code)


def slab_of(distribution: Distribution) -> Distribution:
    """What a code of independent latents is distributed by where it is not zero: a spike-and-slab's slab, or itself.

    The latents are dimensions of its batch: the shape is `batch_shape + event_shape` of the distribution.
    """
    if isinstance(distribution, Independent):
        return slab_of(distribution.base_dist)
    return distribution.slab if isinstance(distribution, SpikeSlab) else distribution


def centre(distribution: Distribution) -> Tensor:
    r"""The mean, or where a family need not have one its median; shape `batch_shape + event_shape`.

    That is `loc` for Cauchy and Student's t, :math:`\gamma c` for a spike-and-slab whose slab has the centre c, and
    the mean for all others. What `evaluate`, the probes and the plots take as the code of a datum.

    Raises:
        NotImplementedError: a distribution that does not give its mean.
    """
    if isinstance(distribution, Independent):
        return centre(distribution.base_dist)
    if isinstance(distribution, SpikeSlab):
        return distribution.probs * centre(distribution.slab)
    return distribution.loc if isinstance(distribution, (Cauchy, StudentT)) else distribution.mean


def hard_code(distribution: Distribution) -> Tensor:
    r"""The code with exact zeros: the slab's centre where :math:`\gamma > 1/2`, else 0; shape as of `centre`.

    Of a distribution without an atom at zero, and of a point, it is the `centre`.
    """
    logits = inclusion_logits(distribution)
    if logits is None:
        return centre(distribution)
    return torch.where(logits > 0, centre(slab_of(distribution)), torch.zeros_like(logits))


def is_bernoulli(distribution: Distribution) -> bool:
    """Whether data are distributed as independent Bernoullis, so that their cross-entropy is at least 0."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return isinstance(distribution, Bernoulli)


def noise_scale(distribution: Distribution) -> Tensor | None:
    """The parameter `scale` of the data's family, in units of the data; None where it has none."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return getattr(distribution, "scale", None)


def scale_of(distribution: Distribution) -> Tensor:
    """How wide the distribution of every coordinate is, of the shape of `centre`.

    The parameter `scale` of a family that has one, 0 of a point, and the standard deviation of any other.

    Raises:
        NotImplementedError: a distribution that gives neither.
    """
    if is_point(distribution):
        return torch.zeros_like(centre(distribution))
    if isinstance(distribution, Independent):
        return scale_of(distribution.base_dist)
    if hasattr(distribution, "scale"):
        return distribution.scale.expand(distribution.batch_shape + distribution.event_shape)
    return distribution.stddev
