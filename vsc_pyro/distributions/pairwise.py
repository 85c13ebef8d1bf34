r"""Divergences of every distribution of a batch from every component of a mixture, :math:`KL(q_b \| p_u)`.

B posteriors and a prior of U components with J latents need B U J divergences. For Bernoulli spikes and normal slabs,
the sum over J is a matrix product, which avoids the ``(B, U, J)`` tensor and most of its cost.
"""

from __future__ import annotations

import math
from typing import TypeGuard

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.distributions.constraints import Constraint
from torch.nn.functional import logsigmoid

from vsc_pyro.distributions.families import changed
from vsc_pyro.distributions.low_precision import in_float32, is_coarse
from vsc_pyro.distributions.spike_slab import SpikeSlab
from vsc_pyro.distributions.spikes import bounded, spike_entropy

_INFINITE = 1e20  # above this, a divergence comes from log-odds that `bounded` has made finite


def pairwise_kl(p: Distribution, components: Distribution) -> Tensor:
    r"""Return :math:`KL(p_b \| q_u)`, shape ``(*, U)``, in nats.

    Args:
        p: distributions :math:`p_b`, `batch_shape` ``(*)``.
        components: distributions :math:`q_u`, `batch_shape` ``(U,)``.

    Raises:
        NotImplementedError: no closed form.
        ValueError: an infinite divergence.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from vsc_pyro.distributions.pairwise import pairwise_kl
        >>> q = dist.Normal(torch.zeros(4, 7), 1.0).to_event(1)
        >>> components = dist.Normal(torch.ones(3, 7), 1.0).to_event(1)
        >>> kl = pairwise_kl(q, components)
        >>> kl.shape, kl[0, 0]  # 7 latents of 1/2 nat each
        (torch.Size([4, 3]), tensor(3.5000))
    """
    if is_coarse(p) or is_coarse(components):
        p, components = in_float32(p), in_float32(components)
    if _is_vector(p) and _is_vector(components):
        ones = torch.ones((), dtype=p.mean.dtype, device=p.mean.device)
        return _pairwise(p.base_dist, components.base_dist, ones)
    return _by_broadcasting(p, components).movedim(0, -1)


def _is_vector(distribution: Distribution) -> TypeGuard[Independent]:
    return isinstance(distribution, Independent) and distribution.reinterpreted_batch_ndims == 1


def _pairwise(p: Distribution, q: Distribution, weight: Tensor) -> Tensor:
    r"""Return :math:`\sum_j w_j KL(p_{bj} \| q_{uj})` for scalars with batch shapes ``(*, J)`` and ``(U, J)``."""
    if isinstance(p, SpikeSlab) and isinstance(q, SpikeSlab):
        on, off, q_logits = p.probs, torch.sigmoid(-p.logits), bounded(q.logits)
        cross = on @ logsigmoid(q_logits).mT + off @ logsigmoid(-q_logits).mT
        spikes = -spike_entropy(p.logits).sum(-1, keepdim=True) - cross
        return spikes.masked_fill(spikes > _INFINITE, math.inf) + _pairwise(p.slab, q.slab, on)
    if isinstance(p, Normal) and isinstance(q, Normal):
        # The expanded square (m - m_u)^2 / s_u^2 is a difference of large numbers for narrow slabs, which float32 would
        # round away.
        weight, loc, scale, q_loc, q_scale = (
            t.double() for t in (weight.expand_as(p.loc), p.loc, p.scale, q.loc, q.scale)
        )
        precision = q_scale**-2
        own = (weight * (scale.log() + 0.5)).sum(-1, keepdim=True)
        squares = (weight * (scale**2 + loc**2)) @ precision.mT - 2 * (weight * loc) @ (q_loc * precision).mT
        squares = squares + weight @ (q_loc**2 * precision).mT
        return (weight @ q_scale.log().mT - own + 0.5 * squares).to(p.loc.dtype)
    return (weight * _by_broadcasting(p, q, 1)).sum(-1).movedim(0, -1)


def _by_broadcasting(p: Distribution, q: Distribution, event_dims: int = 0) -> Tensor:
    """Return the divergences with shape ``(U, *)``."""
    num = len(p.batch_shape) - event_dims
    return kl_divergence(p.expand(q.batch_shape[:1] + p.batch_shape), insert_batch_dims(q, num, event_dims))


def insert_batch_dims(distribution: Distribution, num: int, before: int = 0) -> Distribution:
    """Insert `num` dimensions of size 1 into the batch shape, `before` dimensions from its right end.

    Raises:
        NotImplementedError: the distribution is not made of scalars with parameters, see `families.changed`.
    """
    before += len(distribution.event_shape)

    def shaped(_: str, parameter: Tensor, __: Constraint) -> Tensor:
        kept = parameter.dim() - before
        return parameter.reshape(parameter.shape[:kept] + (1,) * num + parameter.shape[kept:])

    return changed(distribution, shaped)
