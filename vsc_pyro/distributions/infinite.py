r"""`why_infinite`: detect divergences that are infinite or undefined, where an estimate from draws would be finite.

:math:`KL(q \| p) = E_q[\log q - \log p]` is infinite in two cases:

* q has mass where p has none: an atom, or values outside the support of p. (The formula of a log-density often returns
  a number outside the support.)
* q has heavy tails: :math:`-\log p` grows as :math:`|z|^k`, and q has finite moments only below an order
  :math:`m \le k`. Under the logarithm of a mean over K draws, the draw with the largest weight counts, and the order
  is K m.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from pyro.distributions import MaskedDistribution, TorchDistribution, ZeroInflatedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Distribution,
    Independent,
    Transform,
    TransformedDistribution,
    constraints,
)

from vsc_pyro.distributions.atoms import is_atom_free, is_continuous, parts_of
from vsc_pyro.distributions.draw_memory import LostDrawError, copy_of
from vsc_pyro.distributions.families import is_point, moment_order, tail_power
from vsc_pyro.distributions.spike_slab import SpikeSlab

_WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)

POINT = (
    "a point (Delta) has no divergence from a SpikeSlab: at zero it would be scored by a probability and elsewhere by "
    "a density; use a LaplacePrior with DeltaEncoder(rectify=True), or SpikeSlabEncoder; in a guide of your own, draw "
    "the site from a SpikeSlab, or use Trace_ELBO for a Delta of another site's draw"
)


def why_infinite(q: Distribution, p: Distribution, draws: int = 1) -> str | None:
    """Return why the divergence of q from p is infinite or undefined, and the remedy; None if no reason is known.

    A point (`Delta`) is never refused here: its log-density under p is a maximum a posteriori objective.

    Args:
        q: the posterior.
        p: the prior.
        draws: the number K of draws of q under one logarithm, as in an importance-weighted bound.

    Example:
        >>> import pyro.distributions as dist
        >>> from vsc_pyro.distributions import why_infinite
        >>> why_infinite(dist.Normal(0.0, 1.0), dist.Laplace(0.0, 1.0)) is None
        True
        >>> why_infinite(dist.Cauchy(0.0, 1.0), dist.Normal(0.0, 1.0)).split(";")[0]
        'KL(Cauchy || Normal) is infinite: a Cauchy distribution has no mean, and the tails of Normal are lighter'
    """
    q, p = unwrapped(q), unwrapped(p)
    if is_point(q):
        return None
    reason = _why_undefined(q, p) or _why_without_mass(q, p) or _why_heavy_tailed(q, p, draws)
    return f"KL({family(q)} || {family(p)}) {reason}" if reason else None


def _why_undefined(q: Distribution, p: Distribution) -> str | None:
    for inflated in (q, p):
        if _adds_mass_to_density(inflated) and not (inflated is p and is_atom_free(q)):
            return (
                f"does not exist: {family(inflated)} of a continuous distribution adds a probability and a density at "
                "zero; use SpikeSlab(base, probs=1 - gate)"
            )
    return None


def _why_without_mass(q: Distribution, p: Distribution) -> str | None:
    """Return the reason if q has mass where p has none."""
    if not is_atom_free(q) and is_atom_free(p):
        atom = "the spike-and-slab has an atom at zero" if _has_spikes(q) else f"{family(q)} has atoms"
        return (
            f"is infinite: {atom} and {family(p)} has none; use a SpikeSlab prior, or an atom-free posterior such as "
            "NormalEncoder"
        )
    if is_continuous(q) and not is_continuous(p):
        return f"is infinite: {family(q)} is continuous and {family(p)} discrete; use two of one kind"
    if any(all(_leaves_support(leaf, other) for other in _leaves(p)) for leaf in _leaves(q)):
        return (
            f"is infinite: draws of {family(q)} lie outside of the support of {family(p)} with a probability above "
            f"zero; use a posterior with the prior's support{_positive_posterior(p)}"
        )
    return None


def _positive_posterior(p: Distribution) -> str:
    bounds = _bounds(_exact_support(_leaves(p)[0]))
    is_positive = bounds is not None and all(isinstance(b, float) for b in bounds) and bounds == (0.0, torch.inf)
    return ", such as SpikeSlabEncoder(..., slab='truncated-normal')" if is_positive else ""


def _why_heavy_tailed(q: Distribution, p: Distribution, draws: int) -> str | None:
    if not any(all(_has_heavier_tails(leaf, other, draws) for other in _leaves(p)) for leaf in _leaves(q)):
        return None
    heavy = family(_leaves(q)[0])
    moment = "a Cauchy distribution has no mean" if "Cauchy" in heavy else f"{heavy} lacks the moments"
    return (
        f"is infinite: {moment}, and the tails of {family(p)} are lighter; use a Cauchy prior (or slab), or a Normal "
        "or Laplace posterior"
    )


def why_no_point(q: Distribution, value: Tensor, p: Distribution, drawn: Sequence[Distribution]) -> str | None:
    """Return why a point (`Delta`) has no density under a prior, and the remedy; None if no reason is known.

    Args:
        q: the posterior; None is returned if it is not a point.
        value: the point.
        p: the prior.
        drawn: distributions of the guide's auxiliary sites; the point may be a copy of one of their draws.
    """
    p = unwrapped(p)
    if not is_point(unwrapped(q)) or is_point(p) or not is_continuous(p):
        return None
    if not is_atom_free(p) and not drawn:
        return POINT
    if not is_atom_free(p) or all(map(is_atom_free, drawn)):
        return None
    # A value with a graph is a copy if the graph says so or if it has a zero. A leaf may be a parameter, all of whose
    # elements may start at zero.
    if (not value.is_leaf and (_is_a_copy(value) or bool((value == 0).any()))) or _is_partly_zero(value):
        return (
            f"a copy of a draw with an atom has an infinite divergence from {family(p)}, which has none; use a "
            "SpikeSlab prior, or an atom-free posterior"
        )
    return None


def _is_a_copy(value: Tensor) -> bool:
    try:
        return copy_of(value) is not None
    except LostDrawError:
        return True


def _is_partly_zero(value: Tensor) -> bool:
    zero = value == 0
    return bool(zero.any() & ~zero.all())


def unwrapped(distribution: Distribution) -> Distribution:
    """Return the distribution inside `Independent`, masks and expansions."""
    while isinstance(distribution, _WRAPPERS):
        distribution = cast("TorchDistribution", distribution.base_dist)
    return distribution


def family(distribution: Distribution) -> str:
    """Return the name of the class of the unwrapped distribution."""
    return type(unwrapped(distribution)).__name__


def _leaves(distribution: Distribution) -> list[Distribution]:
    """Return the innermost parts of wrappers, mixtures and spike-and-slabs; a transformed distribution is one part."""
    parts = () if isinstance(distribution, TransformedDistribution) else parts_of(distribution)
    return [leaf for part in parts for leaf in _leaves(part)] or [distribution]


def _has_spikes(distribution: Distribution) -> bool:
    return isinstance(distribution, SpikeSlab) or any(map(_has_spikes, parts_of(distribution)))


def _adds_mass_to_density(distribution: Distribution) -> bool:
    return isinstance(distribution, ZeroInflatedDistribution) and is_continuous(distribution.base_dist)


def _has_heavier_tails(q: Distribution, p: Distribution, draws: int) -> bool:
    order, power = moment_order(q), tail_power(p)
    if order is None or power is None:
        return False
    return float(torch.as_tensor(power).max()) >= draws * float(torch.as_tensor(order).min())


def _leaves_support(q: Distribution, p: Distribution) -> bool:
    """Return True if draws of q are known to fall outside the support of p."""
    bounds, allowed = _bounds(_exact_support(q)), _bounds(_exact_support(p))
    if bounds is None or allowed is None:
        return False
    (low, high), (lowest, highest) = bounds, allowed
    # Python numbers are compared without a synchronisation with the device.
    return any(
        bool(beyond.any() if isinstance(beyond, Tensor) else beyond) for beyond in (low < lowest, high > highest)
    )


def _exact_support(distribution: Distribution) -> constraints.Constraint | None:
    if isinstance(distribution, TransformedDistribution):
        if type(distribution).support is not TransformedDistribution.support:
            return distribution.support
        # torch returns the codomain of the last transform, which is too wide: all reals for a rescaled positive number.
        support = _exact_support(distribution.base_dist)
        for transform in _steps(distribution.transforms):
            support = transform.codomain if support is transform.domain and transform.bijective else None
        return support
    with contextlib.suppress(NotImplementedError):
        return distribution.support
    return None


def _steps(transforms: Sequence[Transform]) -> Iterator[Transform]:
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            yield from _steps(transform.parts)
        else:
            yield transform


def _bounds(support: constraints.Constraint | None) -> tuple[Tensor | float, Tensor | float] | None:
    """Return the bounds of a support that is an interval of reals or of whole numbers, or None."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean:
        return 0, 1
    kinds = (
        constraints.interval, constraints.half_open_interval, constraints.greater_than, constraints.greater_than_eq,
        constraints.less_than, constraints.integer_interval, type(constraints.nonnegative_integer),
    )  # fmt: skip
    if support is constraints.real:
        return -torch.inf, torch.inf
    if not isinstance(support, kinds):
        return None
    return getattr(support, "lower_bound", -torch.inf), getattr(support, "upper_bound", torch.inf)
