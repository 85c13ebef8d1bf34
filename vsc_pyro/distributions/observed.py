r"""The distribution of data some of whose values are missing: the density of those that are observed.

.. math:: \log p(x_o) = \sum_{d \in o} \log p(x_d),

for independent :math:`x_d`. A missing value is NaN. If values are missing at random (Rubin, 1976), this is the
likelihood of what was observed.

References
    D. B. Rubin (1976), Inference and missing data.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, biject_to, constraints, kl_divergence, register_kl
from torch.types import _size

from vsc_pyro.distributions import families


class OrMissing(constraints.Constraint):
    """The support of a distribution, and NaN."""

    def __init__(self, values: constraints.Constraint) -> None:
        self.values = values

    def check(self, value: Tensor) -> Tensor:
        return value.isnan() | self.values.check(value)

    def __repr__(self) -> str:
        return f"NaN (missing) or {self.values}"


class Observed(TorchDistribution):
    """A distribution of scalars whose log-density is 0, without gradient, at a missing value (NaN).

    Args:
        values: the distribution of a value that is observed, any `batch_shape`.

    Example:
        >>> import torch
        >>> from pyro.distributions import Normal
        >>> from vsc_pyro.distributions.observed import Observed
        >>> p = Observed(Normal(torch.zeros(2), 1.0)).to_event(1)
        >>> bool(p.log_prob(torch.tensor([1.0, torch.nan])) == Normal(0.0, 1.0).log_prob(torch.tensor(1.0)))
        True
    """

    arg_constraints: ClassVar[Any] = {}

    def __init__(self, values: Distribution, validate_args: bool | None = None) -> None:
        self.values = values
        super().__init__(values.batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride] as torch declares it
        return OrMissing(cast("constraints.Constraint", self.values.support))

    @property
    def has_rsample(self) -> bool:
        return self.values.has_rsample

    @property
    def mean(self) -> Tensor:
        return self.values.mean

    @property
    def variance(self) -> Tensor:
        return self.values.variance

    def expand(self, batch_shape: _size, _instance: Observed | None = None) -> Observed:
        return Observed(self.values.expand(torch.Size(batch_shape)), validate_args=False)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:
        """Draw whole data; shape `sample_shape + batch_shape`."""
        return self.values.sample(sample_shape)

    def rsample(self, sample_shape: _size = torch.Size()) -> Tensor:
        return self.values.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        missing = value.isnan()
        # A value inside the support, because a density of NaN would make the gradient NaN.
        log_prob = self.values.log_prob(torch.where(missing, self._inside(value), value))
        return torch.where(missing, torch.zeros_like(log_prob), log_prob)

    def _inside(self, value: Tensor) -> Tensor:
        support = cast("constraints.Constraint", self.values.support)
        zero = torch.zeros_like(value)
        return zero if support is constraints.real or support.is_discrete else biject_to(support)(zero)


@functools.singledispatch
def observed_only(likelihood: Distribution) -> TorchDistribution:
    """Return a likelihood of independent values as that of those observed.

    Raises:
        ValueError: values that are not independent given the code, or a size that is the sum of counts.
    """
    values, ndims = likelihood, 0
    while isinstance(values, Independent):
        values, ndims = values.base_dist, ndims + values.reinterpreted_batch_ndims
    if isinstance(values, Observed):
        return cast(TorchDistribution, likelihood)
    if values.event_shape:
        raise ValueError(
            f"values must be independent given a code, so that missing ones can be left out, got "
            f"{type(values).__name__}; let the decoder return a distribution of scalars with .to_event()"
        )
    return Observed(values, validate_args=False).to_event(ndims)


families.is_bernoulli.register(Observed, lambda p: families.is_bernoulli(p.values))
families.has_mean.register(Observed, lambda p: families.has_mean(p.values))
families.centre.register(Observed, lambda p: families.centre(p.values))
families.noise_scale.register(Observed, lambda p: families.noise_scale(p.values))
families.scale_of.register(Observed, lambda p: families.scale_of(p.values))


@register_kl(Observed, Observed)
def _kl(p: Observed, q: Observed) -> Tensor:
    return kl_divergence(p.values, q.values)
