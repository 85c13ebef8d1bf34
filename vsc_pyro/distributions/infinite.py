r"""`why_infinite`: divergences that are infinite or do not exist, though a few draws would show a finite number.

:math:`KL(q \| p) = E_q[\log q - \log p]` is infinite where q has mass and p has none: on an atom, or outside p's
support (the formula of a log-density often goes on there). It is infinite, too, where q's tails are so heavy that
:math:`E_q[-\log p]` diverges: where :math:`-\log p` grows as :math:`|z|^k` and q has finite moments below an order
:math:`m \le k` alone. Under the logarithm of a sum of K draws the smallest of them counts, and the order is K m.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from pyro.distributions import (
    AsymmetricLaplace,
    InverseGamma,
    Logistic,
    MaskedDistribution,
    MultivariateStudentT,
    SoftAsymmetricLaplace,
    SoftLaplace,
    ZeroInflatedDistribution,
)
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch import distributions as families
from torch.distributions import Distribution, TransformedDistribution, constraints

from vsc_pyro.distributions.atoms import is_atom_free, is_continuous, parts_of
from vsc_pyro.distributions.draw_memory import LostDrawError, copy_of
from vsc_pyro.distributions.families import is_point
from vsc_pyro.distributions.normal_tails import ShiftedNormalTails
from vsc_pyro.distributions.spike_slab import SpikeSlab

_WRAPPERS = (families.Independent, MaskedDistribution, ExpandedDistribution)

# Moments of every order below this one are finite; of families that are not here, all are.
_ORDERS: dict[type[Distribution], Callable[[Distribution], Tensor | float]] = {
    families.Cauchy: lambda q: 1,
    families.HalfCauchy: lambda q: 1,
    families.StudentT: lambda q: q.df,
    MultivariateStudentT: lambda q: q.df,
    families.Pareto: lambda q: q.alpha,
    InverseGamma: lambda q: q.concentration,
    families.FisherSnedecor: lambda q: q.df2 / 2,
}
# The power by which minus the log-density grows; of families that are not here, as a logarithm or in no known way.
_POWERS: dict[type[Distribution], Callable[[Distribution], Tensor | float]] = {
    families.Normal: lambda p: 2,
    families.HalfNormal: lambda p: 2,
    families.MultivariateNormal: lambda p: 2,
    families.LowRankMultivariateNormal: lambda p: 2,
    ShiftedNormalTails: lambda p: 2,
    families.Weibull: lambda p: p.concentration,
} | dict.fromkeys(
    (
        families.Laplace, families.Exponential, families.Gamma, families.Gumbel, Logistic, SoftLaplace,
        AsymmetricLaplace, SoftAsymmetricLaplace,
    ),
    lambda p: 1,
)  # fmt: skip


POINT = (
    "a point (Delta) has no divergence from a SpikeSlab: at zero it would be scored by a probability and elsewhere by "
    "a density; use a LaplacePrior with DeltaEncoder(rectify=True), or SpikeSlabEncoder; in a guide of your own, draw "
    "the site from a SpikeSlab, or use Trace_ELBO for a Delta of another site's draw"
)


def why_infinite(q: Distribution, p: Distribution, draws: int = 1) -> str | None:
    """What makes the divergence of q from p infinite, and the remedy; None where nothing is known to.

    A point (`Delta`) has no divergence of that kind: its log-density under p is that of a maximum a posteriori.

    Args:
        q: posterior.
        p: prior.
        draws: how many draws of q one logarithm is taken over, as by an importance-weighted bound.
    """
    q, p = unwrapped(q), unwrapped(p)
    if is_point(q):
        return None
    kl = f"KL({family(q)} || {family(p)})"
    for inflated in (q, p):
        if _adds_mass_to_density(inflated) and not (inflated is p and is_atom_free(q)):
            return (
                f"{kl} does not exist: {family(inflated)} of a continuous distribution adds a probability and a "
                "density at zero; use SpikeSlab(base, probs=1 - gate)"
            )
    if not is_atom_free(q) and is_atom_free(p):
        atom = "the spike-and-slab has an atom at zero" if _is_spiked(q) else f"{family(q)} has atoms"
        return (
            f"{kl} is infinite: {atom} and {family(p)} has none; use a SpikeSlab prior, or an atom-free posterior such "
            "as NormalEncoder"
        )
    if is_continuous(q) and not is_continuous(p):
        return f"{kl} is infinite: {family(q)} is continuous and {family(p)} discrete; use two of one kind"
    pairs = [[(leaf, other) for other in _leaves(p)] for leaf in _leaves(q)]
    if any(all(_leaves_support(*pair) for pair in each) for each in pairs):
        return (
            f"{kl} is infinite: draws of {family(q)} lie outside of the support of {family(p)} with a probability "
            "above zero; use a posterior with the prior's support"
        )
    if any(all(_has_heavier_tails(*pair, draws) for pair in each) for each in pairs):
        heavy = family(_leaves(q)[0])
        moment = "a Cauchy distribution has no mean" if "Cauchy" in heavy else f"{heavy} lacks the moments"
        return (
            f"{kl} is infinite: {moment}, and the tails of {family(p)} are lighter; use a Cauchy prior (or slab), or a "
            "Normal or Laplace posterior"
        )
    return None


def why_no_point(q: Distribution, value: Tensor, p: Distribution, drawn: Sequence[Distribution]) -> str | None:
    """What is wrong with a point (`Delta`) under a prior, and the remedy; None where nothing is known to be.

    Args:
        q: posterior; whatever is no point will do.
        value: the point.
        p: prior.
        drawn: what a guide's auxiliary sites draw, of which the point may be a copy.
    """
    p = unwrapped(p)
    if not is_point(unwrapped(q)) or is_point(p) or not is_continuous(p):
        return None
    if not is_atom_free(p) and not drawn:
        return POINT
    if not is_atom_free(p) or all(map(is_atom_free, drawn)):
        return None
    # A parameter is no copy; of a draw, its graph tells, or where it has none its zeros.
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
    """The distribution inside `Independent`, masks and expansions."""
    while isinstance(distribution, _WRAPPERS):
        distribution = distribution.base_dist
    return distribution


def family(distribution: Distribution) -> str:
    """The name of a distribution's class, that of a wrapped one without its wrappers."""
    return type(unwrapped(distribution)).__name__


def _leaves(distribution: Distribution) -> list[Distribution]:
    """What wrappers, mixtures and spike-and-slabs consist of; whatever has transforms is one thing."""
    parts = () if isinstance(distribution, TransformedDistribution) else parts_of(distribution)
    return [leaf for part in parts for leaf in _leaves(part)] or [distribution]


def _is_spiked(distribution: Distribution) -> bool:
    return isinstance(distribution, SpikeSlab) or any(map(_is_spiked, parts_of(distribution)))


def _adds_mass_to_density(distribution: Distribution) -> bool:
    return isinstance(distribution, ZeroInflatedDistribution) and is_continuous(distribution.base_dist)


def _has_heavier_tails(q: Distribution, p: Distribution, draws: int) -> bool:
    order, power = (
        next((number(d) for kind, number in table.items() if isinstance(d, kind)), None)
        for d, table in ((q, _ORDERS), (p, _POWERS))
    )
    if order is None or power is None:
        return False
    return float(torch.as_tensor(power).max()) >= draws * float(torch.as_tensor(order).min())


def _leaves_support(q: Distribution, p: Distribution) -> bool:
    """Whether draws of q are known to fall outside p's support."""
    bounds, allowed = _bounds(_exact_support(q)), _bounds(_exact_support(p))
    if bounds is None or allowed is None:
        return False
    (low, high), (lowest, highest) = bounds, allowed
    # Bounds that are numbers are compared without asking the device.
    return any(
        bool(beyond.any() if isinstance(beyond, Tensor) else beyond) for beyond in (low < lowest, high > highest)
    )


def _exact_support(distribution: Distribution) -> constraints.Constraint | None:
    if isinstance(distribution, TransformedDistribution):
        if type(distribution).support is not TransformedDistribution.support:
            return distribution.support
        # torch says the last transform's codomain, all numbers for a positive one that is rescaled.
        support = _exact_support(distribution.base_dist)
        for transform in distribution.transforms:
            support = transform.codomain if support is transform.domain and transform.bijective else None
        return support
    with contextlib.suppress(NotImplementedError):
        return distribution.support
    return None


def _bounds(support: constraints.Constraint | None) -> tuple[Tensor | float, Tensor | float] | None:
    """The interval that a support is, of reals or, with both ends, of whole numbers; None for any other."""
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
