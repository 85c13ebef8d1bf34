"""Questions about a distribution that its family answers: centre, inclusion, slab, mean, tails.

Each question is a function that removes `Independent` and dispatches on the class of the base distribution, as
`functools.singledispatch` does. A family registers its answer beside its class, as `register_kl` registers a
divergence::

    @centre.register
    def _(distribution: StudentT) -> Tensor:
        return distribution.loc

A family that registers nothing is answered from its moments and attributes. So a new family is one file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from pyro.distributions import (
    AsymmetricLaplace,
    Delta,
    ImproperUniform,
    InverseGamma,
    Logistic,
    MultivariateStudentT,
    SoftAsymmetricLaplace,
    SoftLaplace,
    TorchDistribution,
)
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Cauchy,
    Distribution,
    Exponential,
    FisherSnedecor,
    Gamma,
    Gumbel,
    HalfCauchy,
    HalfNormal,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Pareto,
    StudentT,
    Weibull,
)
from torch.distributions.constraints import Constraint, real
from torch.nn.functional import logsigmoid

from vsc_pyro.distributions.elementwise import unexpanded


def _by_family(answer: Callable[[Distribution], Any]) -> Any:
    """Make `answer` the default answer of a question, to which families register their own."""
    answers = functools.singledispatch(answer)

    def ask(distribution: Distribution) -> Any:
        return answers(_without_independent(distribution))

    question = cast("Any", functools.wraps(answer)(ask))
    question.register = answers.register
    return question


def _without_independent(distribution: Distribution) -> Distribution:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution


@_by_family
def is_point(distribution: Distribution) -> bool:
    """Return True if the distribution is a point (`Delta`), which has no density."""
    return False


@is_point.register
def _(distribution: Delta) -> bool:
    return True


@_by_family
def is_proper(distribution: Distribution) -> bool:
    """Return True if the distribution integrates to 1 and can be sampled."""
    return True


@is_proper.register
def _(distribution: ImproperUniform) -> bool:
    return False


@_by_family
def is_bernoulli(distribution: Distribution) -> bool:
    """Return True for independent Bernoulli distributions of data, whose cross-entropy is at least 0."""
    return False


@is_bernoulli.register
def _(distribution: Bernoulli) -> bool:
    return True


@_by_family
def has_mean(distribution: Distribution) -> bool:
    """Return True if the mean is finite: False for Cauchy, and for a spike-and-slab with a Cauchy slab."""
    return True


@has_mean.register
def _(distribution: Cauchy) -> bool:
    return False


@_by_family
def inclusion_logits(distribution: Distribution) -> Tensor | None:
    """Return the log-odds of P(z != 0) for every coordinate, or None for a distribution without a spike.

    For a mixture these are the log-odds of the components' weighted mean probability.

    Returns:
        Shape `batch_shape + event_shape`.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from vsc_pyro.distributions import SpikeSlab, inclusion_logits
        >>> slab = dist.Normal(torch.zeros(3), 1.0)
        >>> inclusion_logits(SpikeSlab(slab, logits=torch.tensor([-1.0, 0.0, 2.0])).to_event(1))
        tensor([-1.,  0.,  2.])
        >>> print(inclusion_logits(slab))
        None
    """
    base = getattr(distribution, "base_dist", None)
    return None if base is None else inclusion_logits(base)


@inclusion_logits.register
def _(distribution: MixtureSameFamily) -> Tensor | None:
    logits = inclusion_logits(distribution.component_distribution)
    if logits is None:
        return None
    ndims = len(distribution.event_shape)
    weights = distribution.mixture_distribution.logits.reshape(logits.shape[: logits.ndim - ndims] + (1,) * ndims)
    on, off = (torch.logsumexp(weights + logsigmoid(sign * logits), -1 - ndims) for sign in (1, -1))
    return on - off


@_by_family
def slab_of(distribution: Distribution) -> Distribution:
    """Return the slab of a spike-and-slab, or the distribution itself for all others.

    `Independent` is removed, so the slab's `batch_shape` is `batch_shape + event_shape` of the distribution.
    """
    return distribution


@_by_family
def centre(distribution: Distribution) -> Tensor:
    r"""Return the mean, or the median of a family that need not have a mean.

    It is `loc` for Cauchy and Student's t, :math:`\gamma c` for a spike-and-slab whose slab has the centre c, and the
    mean for all others. `vsc_pyro.evaluate`, the probes and the plots take it as the code of a datum.

    Returns:
        Shape `batch_shape + event_shape`.

    Raises:
        NotImplementedError: the distribution does not implement its mean.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from vsc_pyro.distributions import SpikeSlab, centre, hard_code
        >>> q = SpikeSlab(dist.Cauchy(torch.tensor([4.0, 8.0]), 1.0), probs=torch.tensor([0.25, 0.75])).to_event(1)
        >>> centre(q)
        tensor([1., 6.])
        >>> hard_code(q)
        tensor([0., 8.])
    """
    return distribution.mean


@centre.register(Cauchy)
@centre.register(StudentT)
def _(distribution: Cauchy | StudentT) -> Tensor:
    return distribution.loc


@_by_family
def noise_scale(distribution: Distribution) -> Tensor | None:
    """Return the parameter `scale` of a distribution of data, in units of the data, or None for a family without it."""
    return getattr(distribution, "scale", None)


@functools.singledispatch
def given(likelihood: Any, x: Tensor) -> Any:
    """Return the likelihood of data x ``(B, ...)`` under the context that x holds; most likelihoods have none.

    A context, such as the size of a cell, is a part of the datum that the likelihood is conditional on. The mean and
    the draws of the result have the context of x, and its densities are those of `likelihood`.
    """
    return likelihood


@functools.singledispatch
def values_of(likelihood: Any) -> Any:
    """Return the likelihood of the values of a datum alone, in the context of its draws; most have no context."""
    return likelihood


class Contrast(NamedTuple):
    """The difference between two likelihoods.

    Attributes:
        values: the change of each value of a datum, shape ``(*, D)``.
        unit: of the changes, in words.
        ratios: by what factor each mean differs, for likelihoods of rates; else None.
    """

    values: Tensor
    unit: str = "in the units of the data"
    ratios: Tensor | None = None


@functools.singledispatch
def contrast(likelihood: Any, other: Any) -> Contrast:
    """Return by how much a likelihood exceeds another of its family, so that the values of a datum can be compared.

    By default, the change of the mean.
    """
    return Contrast(likelihood.mean - other.mean)


@_by_family
def scale_of(distribution: Distribution) -> Tensor:
    """Return the width of every coordinate: the parameter `scale`, 0 for a point, else the standard deviation.

    Returns:
        Shape of `centre`.

    Raises:
        NotImplementedError: the family has no `scale` and does not implement its standard deviation.
    """
    scale = getattr(distribution, "scale", None)
    return distribution.stddev if scale is None else scale.expand(distribution.batch_shape + distribution.event_shape)


@scale_of.register
def _(distribution: Delta) -> Tensor:
    return torch.zeros_like(centre(distribution))


@_by_family
def variance_of(distribution: Distribution) -> Tensor:
    """Return the variance of every coordinate.

    Returns:
        A shape that broadcasts to `batch_shape + event_shape`, with one number where a parameter is expanded.
    """
    return distribution.variance


@variance_of.register
def _(distribution: Normal) -> Tensor:
    return unexpanded(distribution.scale).square()


@_by_family
def moment_order(distribution: Distribution) -> Tensor | float | None:
    """Return the order below which all moments are finite, or None for a family whose moments are all finite."""
    return None


moment_order.register(Cauchy, lambda q: 1)
moment_order.register(HalfCauchy, lambda q: 1)
moment_order.register(StudentT, lambda q: q.df)
moment_order.register(MultivariateStudentT, lambda q: q.df)
moment_order.register(Pareto, lambda q: q.alpha)
moment_order.register(InverseGamma, lambda q: q.concentration)
moment_order.register(FisherSnedecor, lambda q: q.df2 / 2)


@_by_family
def tail_power(distribution: Distribution) -> Tensor | float | None:
    """Return k where minus the log-density grows as the k-th power of ``|z|``; None if it is logarithmic or unknown."""
    return None


for _family in (Normal, HalfNormal, MultivariateNormal, LowRankMultivariateNormal):
    tail_power.register(_family, lambda p: 2)
for _family in (Laplace, Exponential, Gamma, Gumbel, Logistic, SoftLaplace, AsymmetricLaplace, SoftAsymmetricLaplace):
    tail_power.register(_family, lambda p: 1)
tail_power.register(Weibull, lambda p: p.concentration)


Change = Callable[[str, Tensor, Constraint], Tensor]
"""Maps the name, the value and the constraint of a parameter to its new value."""


@functools.singledispatch
def changed(distribution: Distribution, change: Change) -> Distribution:
    """Return a distribution of the same family, each of whose parameters is replaced by what `change` returns.

    The parameters of a part have dotted names, such as ``"slab.loc"``. A family that has both `probs` and `logits` is
    rebuilt from its `logits`.

    Raises:
        NotImplementedError: the distribution is not one of scalars, or has no parameters.

    Example:
        >>> import pyro.distributions as dist
        >>> import torch
        >>> from vsc_pyro.distributions.families import changed
        >>> changed(dist.Normal(torch.tensor(1.0), torch.tensor(2.0)), lambda name, value, constraint: 10 * value)
        Normal(loc: 10.0, scale: 20.0)
    """
    constraints = distribution.arg_constraints
    names = [name for name in constraints if not (name == "probs" and "logits" in constraints)]
    if distribution.event_shape or not names:
        raise NotImplementedError(f"{type(distribution).__name__} cannot be made of other parameters")
    parameters = {name: change(name, getattr(distribution, name), constraints[name]) for name in names}
    return cast("Any", type(distribution))(**parameters, validate_args=False)


@changed.register
def _(distribution: Independent, change: Change) -> Distribution:
    base = cast("TorchDistribution", changed(distribution.base_dist, change))
    return base.to_event(distribution.reinterpreted_batch_ndims)


@changed.register
def _(distribution: Delta, change: Change) -> Distribution:
    return Delta(change("v", distribution.v, real), event_dim=distribution.event_dim)


def of_part(name: str, change: Change) -> Change:
    """Return `change` for the parameters of the part `name`."""
    return lambda parameter, value, constraint: change(f"{name}.{parameter}", value, constraint)


def inclusion_of(distribution: Distribution) -> Tensor:
    """Return P(z != 0) for every coordinate: 1 without a spike; 0 or 1 for a point.

    Returns:
        Shape `batch_shape + event_shape`.
    """
    logits = inclusion_logits(distribution)
    if logits is not None:
        return logits.sigmoid()
    code = centre(distribution)
    return (code != 0).to(code) if is_point(distribution) else torch.ones_like(code)


def hard_code(distribution: Distribution) -> Tensor:
    r"""Return the code with exact zeros: the slab's centre where :math:`\gamma > 1/2`, else 0.

    For a distribution without a spike, such as a point, it is the `centre`.

    Returns:
        Shape `batch_shape + event_shape`.
    """
    logits = inclusion_logits(distribution)
    if logits is None:
        return centre(distribution)
    return torch.where(logits > 0, centre(slab_of(distribution)), torch.zeros_like(logits))
