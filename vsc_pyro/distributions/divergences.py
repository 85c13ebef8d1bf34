r"""Kullback-Leibler divergences of the spike-and-slab, registered with `torch.distributions.kl_divergence`.

.. math:: KL(q \| p) = \gamma_q\, KL(F_q \| F_p) + KL(\mathrm{Bern}(\gamma_q) \| \mathrm{Bern}(\gamma_p))

for any two slabs whose KL divergence is registered. For a q without an atom it is :math:`KL(q \| F_p) - \log \gamma_p`.

Infinite divergences raise a `ValueError`: those of a spike-and-slab from a p without an atom; of a Cauchy distribution
from a Normal, a Laplace or a mixture of these, whose tails are lighter (:math:`E_q|z|` is infinite); of a slab on all
reals from a positive slab; and of any q but a point from an improper p.

All functions return `batch_shape`, in nats, and work for ``.to_event`` distributions.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn, cast

import torch
from pyro.distributions import Delta, ImproperUniform, MultivariateNormal
from pyro.distributions import Normal as PyroNormal
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import Cauchy, Distribution, Laplace, MixtureSameFamily, Normal, kl_divergence, register_kl
from torch.nn.functional import logsigmoid, softplus

from vsc_pyro.distributions.atoms import is_atom_free
from vsc_pyro.distributions.elementwise import squared_distance, unexpanded
from vsc_pyro.distributions.families import variance_of
from vsc_pyro.distributions.infinite import POINT, family, why_infinite
from vsc_pyro.distributions.low_precision import kl_in_float32
from vsc_pyro.distributions.normal_tails import ShiftedNormalTails
from vsc_pyro.distributions.positive import POSITIVE
from vsc_pyro.distributions.spike_slab import IndependentSpikeSlab, SpikeSlab
from vsc_pyro.distributions.spikes import almost_certain

_NORMALS = (Normal, PyroNormal)
_LINEAR = 50.0  # softplus is the identity from here on, in float64 too


@register_kl(SpikeSlab, SpikeSlab)
@kl_in_float32
def _kl_spike_slab_spike_slab(p: SpikeSlab, q: SpikeSlab) -> Tensor:
    r"""Return :math:`\gamma_p KL(F_p \| F_q) + KL(\mathrm{Bern}(\gamma_p) \| \mathrm{Bern}(\gamma_q))`."""
    slabs = _slab_divergence(p.slab, q.slab)
    kl, _ = cast("tuple[Tensor, Tensor]", _Mixed.apply(p.probs, p.logits, unexpanded(q.logits), slabs))
    return kl.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))


class _Mixed(torch.autograd.Function):
    r"""The divergence of two spike-and-slabs, and its derivative in the inclusion probability :math:`\gamma_p`.

    Its arguments are :math:`\gamma_p`, both log-odds, and the divergence of the slabs. The derivative in the first
    log-odds, given :math:`\gamma_p`, is zero.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(probs: Tensor, logits: Tensor, prior_logits: Tensor, slabs: Tensor) -> tuple[Tensor, Tensor]:
        on, prior_on = almost_certain(logits), almost_certain(prior_logits)
        excess = slabs + (on - prior_on)
        # log(gamma_p / gamma_q) is the difference of log-odds plus log((1 - gamma_p) / (1 - gamma_q)).
        off = softplus(prior_on, threshold=_LINEAR) - softplus(on, threshold=_LINEAR)
        is_infinite = prior_logits.isinf() & (logits != prior_logits)  # q is certain and p is not
        return torch.addcmul(off, probs, excess).masked_fill_(is_infinite, math.inf), excess

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        probs, logits, prior_logits, slabs, excess = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            excess = slabs + (almost_certain(logits) - almost_certain(prior_logits))
        of_slabs = gradient * probs
        off, on = (part.sum_to_size(prior_logits.shape) for part in (gradient, of_slabs))
        of_prior = prior_logits.sigmoid() * off - on
        return (gradient * excess).sum_to_size(probs.shape), None, of_prior, of_slabs.sum_to_size(slabs.shape)


def _slab_divergence(p: Distribution, q: Distribution) -> Tensor:
    """Return KL(p || q); of normal slabs, computed on a parameter of each latent, not on its copies for each datum."""
    if not (type(p) in _NORMALS and type(q) in _NORMALS):
        return kl_divergence(p, q)
    loc, variance = unexpanded(cast("Normal", q).loc), variance_of(q)
    ratio = variance_of(p) / variance
    return torch.addcmul(0.5 * (ratio - 1 - ratio.log()), squared_distance(cast("Normal", p).loc, loc), 0.5 / variance)


@register_kl(Distribution, SpikeSlab)
@kl_in_float32
def _kl_atom_free_spike_slab(p: Distribution, q: SpikeSlab) -> Tensor:
    r"""Return :math:`KL(p \| F_q) - \log \gamma_q`, which is finite because q dominates any atom-free p."""
    if not p.has_rsample or not is_atom_free(p):
        raise NotImplementedError(f"no closed form for KL({type(p).__name__} || SpikeSlab)")
    return kl_divergence(p, q.slab) - logsigmoid(q.logits)


@register_kl(Delta, IndependentSpikeSlab)
@register_kl(Delta, SpikeSlab)
def _kl_delta_spike_slab(p: Delta, q: SpikeSlab) -> NoReturn:
    raise ValueError(POINT)


def _refuse_infinite(p: Distribution, q: Distribution) -> NoReturn:
    if reason := why_infinite(p, q):
        # Not a NotImplementedError, for which an ELBO would sample the infinite divergence.
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
    kl = kl_divergence(p.base_dist, q.base_dist)
    return cast("Tensor", sum_rightmost(kl, p.reinterpreted_batch_ndims))


# Without these, torch would return a number or an ELBO would sample the infinite divergence.
for _positive in POSITIVE:
    for _real in (Normal, Laplace, Cauchy, ShiftedNormalTails):
        register_kl(_real, _positive)(_refuse_infinite)
register_kl(Cauchy, Normal)(_refuse_infinite)
register_kl(Cauchy, Laplace)(_refuse_infinite)
register_kl(Cauchy, MixtureSameFamily)(_refuse_infinite)


@register_kl(Delta, ImproperUniform)
def _kl_delta_flat(p: Delta, q: ImproperUniform) -> Tensor:
    return -q.log_prob(p.v)


def _refuse_improper(p: Distribution, q: ImproperUniform) -> NoReturn:
    raise ValueError(
        f"KL({family(p)} || ImproperUniform) does not exist because the prior has no finite mass: a posterior would "
        "spread without bound; use DeltaEncoder (a plain autoencoder), or a proper prior such as NormalPrior"
    )


register_kl(Distribution, ImproperUniform)(_refuse_improper)
register_kl(SpikeSlab, ImproperUniform)(_refuse_improper)
register_kl(IndependentSpikeSlab, ImproperUniform)(_refuse_improper)
