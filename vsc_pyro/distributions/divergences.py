r"""Kullback-Leibler divergences of the spike-and-slab, registered with `torch.distributions.kl_divergence`.

.. math:: KL(q \| p) = \gamma_q\, KL(F_q \| F_p) + KL(\mathrm{Bern}(\gamma_q) \| \mathrm{Bern}(\gamma_p))

for any two slabs that have a KL divergence of their own. An atom-free q has :math:`KL(q \| F_p) - \log \gamma_p`. A
spike-and-slab q against an atom-free p has none: its atom has no mass there, the divergence is infinite, and asking for
it is an error. So it is with a Cauchy q against the lighter tails of a Normal, a Laplace or a mixture of these
(:math:`E_q|z|` is infinite), and with any q but a point against an improper p. All return `batch_shape` and compose
with ``.to_event``.
"""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from pyro.distributions import Delta, ImproperUniform, MultivariateNormal
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Cauchy, Distribution, Laplace, MixtureSameFamily, Normal, kl_divergence, register_kl
from torch.nn.functional import logsigmoid

from vsc_pyro.distributions.atoms import is_atom_free
from vsc_pyro.distributions.infinite import POINT, family, why_infinite
from vsc_pyro.distributions.low_precision import kl_in_float32
from vsc_pyro.distributions.spike_slab import IndependentSpikeSlab, SpikeSlab
from vsc_pyro.distributions.spikes import almost_certain


@register_kl(SpikeSlab, SpikeSlab)
@kl_in_float32
def _kl_spike_slab_spike_slab(p: SpikeSlab, q: SpikeSlab) -> Tensor:
    r""":math:`\gamma_p KL(F_p \| F_q) + KL(\mathrm{Bern}(\gamma_p) \| \mathrm{Bern}(\gamma_q))` for any two slabs."""
    on, prior_on = almost_certain(p.logits), almost_certain(q.logits)
    # log(gamma_p / gamma_q) is the difference of log-odds plus log((1 - gamma_p) / (1 - gamma_q)).
    off = logsigmoid(-on) - logsigmoid(-prior_on)
    kl = p.probs * (kl_divergence(p.slab, q.slab) + (on - prior_on)) + off
    return kl.masked_fill(q.logits.isinf() & (p.logits != q.logits), math.inf)  # certain for q, and not so for p


@register_kl(Distribution, SpikeSlab)
@kl_in_float32
def _kl_atom_free_spike_slab(p: Distribution, q: SpikeSlab) -> Tensor:
    r""":math:`KL(p \| F_q) - \log \gamma_q`: finite, since q dominates any atom-free p."""
    if not p.has_rsample or not is_atom_free(p):
        raise NotImplementedError(f"no closed form for KL({type(p).__name__} || SpikeSlab)")
    return kl_divergence(p, q.slab) - logsigmoid(q.logits)


@register_kl(Delta, IndependentSpikeSlab)
@register_kl(Delta, SpikeSlab)
def _kl_delta_spike_slab(p: Delta, q: SpikeSlab) -> NoReturn:
    raise ValueError(POINT)


def _refuse_infinite(p: Distribution, q: Distribution) -> NoReturn:
    if reason := why_infinite(p, q):
        # ValueError, not NotImplementedError: Pyro would take the latter as a request to sample the infinite number.
        raise ValueError(reason)
    raise NotImplementedError(f"no closed form for KL({type(p).__name__} || {type(q).__name__})")


register_kl(SpikeSlab, Distribution)(_refuse_infinite)
register_kl(IndependentSpikeSlab, Distribution)(_refuse_infinite)
register_kl(IndependentSpikeSlab, SpikeSlab)(_refuse_infinite)
register_kl(IndependentSpikeSlab, MultivariateNormal)(_refuse_infinite)


@register_kl(IndependentSpikeSlab, torch.distributions.Independent)
def _kl_independent(p: IndependentSpikeSlab, q: torch.distributions.Independent) -> Tensor:
    if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
        raise NotImplementedError(f"events of shapes {tuple(p.event_shape)} and {tuple(q.event_shape)} have no KL")
    return sum_rightmost(kl_divergence(p.base_dist, q.base_dist), p.reinterpreted_batch_ndims)


# A number or NotImplementedError, which Pyro takes as a request to sample, would hide that these are infinite.
register_kl(Cauchy, Normal)(_refuse_infinite)
register_kl(Cauchy, Laplace)(_refuse_infinite)
register_kl(Cauchy, MixtureSameFamily)(_refuse_infinite)


@register_kl(Delta, ImproperUniform)
def _kl_delta_flat(p: Delta, q: ImproperUniform) -> Tensor:
    return -q.log_prob(p.v)


def _refuse_improper(p: Distribution, q: ImproperUniform) -> NoReturn:
    raise ValueError(
        f"KL({family(p)} || ImproperUniform) does not exist, for the prior has no finite mass: a posterior would "
        "spread without bound; use DeltaEncoder (a plain autoencoder), or a proper prior such as NormalPrior"
    )


register_kl(Distribution, ImproperUniform)(_refuse_improper)
register_kl(SpikeSlab, ImproperUniform)(_refuse_improper)
register_kl(IndependentSpikeSlab, ImproperUniform)(_refuse_improper)
