r"""Divergences of positive slabs, :math:`KL(q \| p) = -E_q \log p(z) - H(q)`.

The log-density of every positive family is linear in one of three pairs of statistics, whose means q knows:

==================================  =================================================
family of p                         statistics
==================================  =================================================
half-normal, truncated normal       :math:`z,\ z^2`
exponential                         :math:`z`
gamma                               :math:`z,\ \log z`
log-normal                          :math:`\log z,\ (\log z)^2`
==================================  =================================================

So q needs mean, variance, entropy and, for a gamma or log-normal p, mean and variance of :math:`\log z`. The truncated
normal distribution has no closed form of these two; its divergence from such a p is sampled.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Exponential,
    Gamma,
    HalfNormal,
    LogNormal,
    Normal,
    register_kl,
)

from vsc_pyro.distributions.families import scale_of
from vsc_pyro.distributions.low_precision import kl_in_float32
from vsc_pyro.distributions.truncated_normal import TruncatedNormal

POSITIVE = (TruncatedNormal, LogNormal, Gamma, HalfNormal, Exponential)


@functools.singledispatch
def log_moments(q: Distribution) -> tuple[Tensor, Tensor]:
    r"""Return mean and variance of :math:`\log z`."""
    raise NotImplementedError(f"E log z has no closed form for {type(q).__name__}")


@log_moments.register
def _(q: LogNormal) -> tuple[Tensor, Tensor]:
    return q.loc, q.scale**2


@log_moments.register
def _(q: Gamma) -> tuple[Tensor, Tensor]:
    return torch.digamma(q.concentration) - q.rate.log(), torch.polygamma(1, q.concentration)


@functools.singledispatch
def _expected_log_prob(p: Distribution, q: Distribution) -> Tensor:
    r"""Return :math:`E_q \log p(z)`."""
    raise NotImplementedError(f"E log p(z) has no closed form for {type(p).__name__}")


@_expected_log_prob.register
def _(p: TruncatedNormal, q: Distribution) -> Tensor:
    return p.expected_log_prob(q.mean, q.variance)


@_expected_log_prob.register
def _(p: HalfNormal, q: Distribution) -> Tensor:
    return 0.5 * math.log(2 / math.pi) - p.scale.log() - (q.variance + q.mean**2) / (2 * p.scale**2)


@_expected_log_prob.register
def _(p: Normal, q: Distribution) -> Tensor:
    squares = q.variance + (q.mean - p.loc) ** 2
    return -0.5 * math.log(2 * math.pi) - p.scale.log() - squares / (2 * p.scale**2)


@_expected_log_prob.register
def _(p: Exponential, q: Distribution) -> Tensor:
    return p.rate.log() - p.rate * q.mean


@_expected_log_prob.register
def _(p: Gamma, q: Distribution) -> Tensor:
    log_density = p.concentration * p.rate.log() - torch.lgamma(p.concentration) - p.rate * q.mean
    return log_density + (p.concentration - 1) * log_moments(q)[0]


@_expected_log_prob.register
def _(p: LogNormal, q: Distribution) -> Tensor:
    mean, variance = log_moments(q)
    squares = variance + (mean - p.loc) ** 2
    return -mean - 0.5 * math.log(2 * math.pi) - p.scale.log() - squares / (2 * p.scale**2)


@kl_in_float32
def _kl_positive(q: Distribution, p: Distribution) -> Tensor:
    return -_expected_log_prob(p, q) - q.entropy()


# The divergences of a Gamma from Gamma, Exponential and Normal, and of a LogNormal from LogNormal, are torch's.
for _q, _ps in {
    TruncatedNormal: (TruncatedNormal, HalfNormal, Exponential, Normal),
    LogNormal: (TruncatedNormal, HalfNormal, Exponential, Normal, Gamma),
    Gamma: (TruncatedNormal, HalfNormal, LogNormal),
}.items():
    for _p in _ps:
        register_kl(_q, _p)(_kl_positive)

scale_of.register(LogNormal, lambda q: q.stddev)
