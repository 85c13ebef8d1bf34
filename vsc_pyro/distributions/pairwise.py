r"""Divergences of every distribution of a batch from every one of a set, :math:`KL(q_b \| p_u)`.

A prior of U components asks for B times U divergences of J latents. Written out they cost several times a whole
training step; those of Normal slabs, and of all spikes, are sums of products, and come as matrix products instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, kl_divergence
from torch.distributions.constraints import Constraint
from torch.nn.functional import logsigmoid

from vsc_pyro.distributions.families import changed
from vsc_pyro.distributions.low_precision import in_float32, is_coarse
from vsc_pyro.distributions.spike_slab import SpikeSlab
from vsc_pyro.distributions.spikes import bounded, spike_entropy

_INFINITE = 1e20  # no other divergence comes near to what stands for an infinite one in a matrix product


def pairwise_kl(p: Distribution, components: Distribution) -> Tensor:
    r""":math:`KL(p_b \| q_u)`, shape ``(*, U)``, for p of `batch_shape` ``(*)`` and components of ``(U,)``.

    Raises:
        NotImplementedError: no closed form.
        ValueError: an infinite divergence.
    """
    if is_coarse(p) or is_coarse(components):
        p, components = in_float32(p), in_float32(components)
    if _is_code(p) and _is_code(components):
        ones = torch.ones((), dtype=p.mean.dtype, device=p.mean.device)
        return _pairwise(p.base_dist, components.base_dist, ones)
    return _written_out(p, components).movedim(0, -1)


def _is_code(distribution: Distribution) -> bool:
    return isinstance(distribution, torch.distributions.Independent) and distribution.reinterpreted_batch_ndims == 1


def _pairwise(p: Distribution, q: Distribution, weight: Tensor) -> Tensor:
    r""":math:`\sum_j w_j KL(p_{bj} \| q_{uj})` of scalars with batch shapes ``(*, J)`` and ``(U, J)``."""
    if isinstance(p, SpikeSlab) and isinstance(q, SpikeSlab):
        on, off, q_logits = p.probs, torch.sigmoid(-p.logits), bounded(q.logits)
        cross = on @ logsigmoid(q_logits).mT + off @ logsigmoid(-q_logits).mT
        spikes = -spike_entropy(p.logits).sum(-1, keepdim=True) - cross
        return spikes.masked_fill(spikes > _INFINITE, math.inf) + _pairwise(p.slab, q.slab, on)
    if isinstance(p, Normal) and isinstance(q, Normal):
        # Multiplied out, (m - m_u)^2 / s_u^2 is a difference of numbers far larger where slabs are narrow: in float32
        # it would be lost in rounding.
        weight, loc, scale, q_loc, q_scale = (
            t.double() for t in (weight.expand_as(p.loc), p.loc, p.scale, q.loc, q.scale)
        )
        precision = q_scale**-2
        own = (weight * (scale.log() + 0.5)).sum(-1, keepdim=True)
        squares = (weight * (scale**2 + loc**2)) @ precision.mT - 2 * (weight * loc) @ (q_loc * precision).mT
        squares = squares + weight @ (q_loc**2 * precision).mT
        return (weight @ q_scale.log().mT - own + 0.5 * squares).to(p.loc.dtype)
    return (weight * _written_out(p, q, 1)).sum(-1).movedim(0, -1)


def _written_out(p: Distribution, q: Distribution, event_dims: int = 0) -> Tensor:
    """Shape ``(U, *)``, by broadcasting one against the other."""
    num = len(p.batch_shape) - event_dims
    return kl_divergence(p.expand(q.batch_shape[:1] + p.batch_shape), insert_batch_dims(q, num, event_dims))


def insert_batch_dims(distribution: Distribution, num: int, before: int = 0) -> Distribution:
    """The same distribution with `num` dimensions of size one in its batch shape, `before` dimensions from the right.

    Raises:
        NotImplementedError: a distribution that is not made of scalars with parameters of their own.
    """
    before += len(distribution.event_shape)

    def shaped(_: str, parameter: Tensor, __: Constraint) -> Tensor:
        kept = parameter.dim() - before
        return parameter.reshape(parameter.shape[:kept] + (1,) * num + parameter.shape[kept:])

    return changed(distribution, shaped)
