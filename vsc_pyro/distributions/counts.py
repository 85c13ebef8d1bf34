r"""Rows of counts whose rates are proportional to a size that belongs to the row, with covariates.

A row holds D counts, and behind them its context: the size s, unless that is the sum of the counts, and K covariates c,

.. math:: x = (n_1, \dots, n_D, [s,] c_1, \dots, c_K), \qquad
    \log p(x) = \sum_d \log p\Big(n_d;\; u\, s\, r\big(f_d + \sum_k a_{dk} c_k\big)\Big), \qquad
    r(f) = e^{\min(f, 0)} + \max(f, 0).

The density is that of the counts given the context. r is the exponential up to 1, so that the log of a rate is a sum
of effects, and linear above. A gene then has more counts than all genes of a typical row, so no data need the
exponential there, and a large code cannot overflow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pad
from torch.types import _size

from vsc_pyro.distributions.families import Contrast, contrast, given

# Keeps the rate of a gene with a very negative output from rounding to 0, where the log-density has no gradient.
_LEAST_SHARE = 1e-8


class WholeCounts(constraints.Constraint):
    """Rows of whole numbers of at least 0, with a size above 0 and finite covariates."""

    is_discrete = True
    event_dim = 1
    remedy = (
        "pass raw counts, not logarithms or normalised values, without rows of zeros, and sizes above 0 behind the "
        "counts if the decoder's size is 'given'"
    )

    def __init__(self, num_counts: int, size_is_given: bool) -> None:
        self._num_counts = num_counts
        self._size_is_given = size_is_given

    def check(self, value: Tensor) -> Tensor:
        counts = value[..., : self._num_counts]
        context = context_of(value, self._num_counts, self._size_is_given)
        are_whole = ((counts >= 0) & (counts == counts.floor())).all(-1)
        return are_whole & (context[..., 0] > 0) & context.isfinite().all(-1)

    def __repr__(self) -> str:
        return f"rows of {self._num_counts} counts (whole numbers of at least 0) of a size above 0"


def context_of(rows: Tensor, num_counts: int, size_is_given: bool) -> Tensor:
    """Return size and covariates of rows ``(*, D + ...)``, shape ``(*, 1 + K)``."""
    counts, stored = rows.tensor_split([num_counts], -1)
    return stored if size_is_given else torch.cat([counts.sum(-1, keepdim=True), stored], -1)


class CountRows(TorchDistribution):
    r"""Independent counts given the size and the covariates of their row; see the module's docstring.

    `log_prob` takes the context from the row. `mean` and `sample` return rows with the context `context`, and those of
    ``given(distribution, x)`` rows with the context of the data x.

    Args:
        outputs: f, shape ``(*, D)``.
        context: size and covariates of draws, shape ``(1 + K,)`` or one that broadcasts, ``(*, 1 + K)``.
        family: from rates ``(*, D)`` to the distribution of single counts.
        effects: a, shape ``(D, K)``; None without covariates.
        unit: u, shape ``()``.
        size_is_given: True if rows hold s; False if s is the sum of the counts.

    Example:
        >>> import torch
        >>> from pyro.distributions import Poisson
        >>> from vsc_pyro.distributions import CountRows, given
        >>> p = CountRows(torch.full((3,), 0.25).log(), torch.tensor([8.0]), Poisson)
        >>> p.mean, given(p, torch.tensor([[10.0, 0.0, 30.0]])).mean
        (tensor([2., 2., 2.]), tensor([[10., 10., 10.]]))
    """

    arg_constraints: ClassVar[Any] = {}

    def __init__(
        self,
        outputs: Tensor,
        context: Tensor,
        family: Callable[[Tensor], Any],
        effects: Tensor | None = None,
        unit: Tensor | float = 1.0,
        size_is_given: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.outputs = outputs
        self.context = context
        self._parts: Any = (family, effects, unit, size_is_given)
        batch_shape = torch.broadcast_shapes(outputs.shape[:-1], context.shape[:-1])
        num_stored = context.shape[-1] - (not size_is_given)
        super().__init__(batch_shape, torch.Size([outputs.shape[-1] + num_stored]), validate_args=validate_args)

    @property
    def num_counts(self) -> int:
        return self.outputs.shape[-1]

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride] as torch declares it
        return WholeCounts(self.num_counts, self._parts[-1])

    def given(self, rows: Tensor) -> CountRows:
        """Return the distribution whose draws have the context of `rows`, shape ``(*, D + ...)``."""
        return CountRows(self.outputs, context_of(rows, self.num_counts, self._parts[-1]), *self._parts)

    def exceeding(self, other: CountRows) -> Contrast:
        r"""Return the changes of the rates from `other` in standard deviations of a count, see `contrast`.

        .. math:: 2 (\mu - \mu') / (\sigma + \sigma')

        Among Poisson counts this is :math:`2 (\sqrt\mu - \sqrt{\mu'})`. It is a log fold change shrunk by the noise
        of the count: the same fold change is worth less in a gene with few counts or overdispersed ones. The context of
        a row does not change.
        """
        ours, theirs = self._counts(self.context), other._counts(other.context)
        changes = 2 * (ours.mean - theirs.mean) / (ours.stddev + theirs.stddev)
        stored = (0, self.event_shape[0] - self.num_counts)
        return Contrast(
            pad(changes, stored), "in standard deviations of a count", pad(ours.mean / theirs.mean, stored, value=1.0)
        )

    def expand(self, batch_shape: _size, _instance: CountRows | None = None) -> CountRows:
        outputs = self.outputs.expand(*batch_shape, self.num_counts)
        return CountRows(outputs, self.context, *self._parts, validate_args=False)

    def _counts(self, context: Tensor) -> Any:
        family, effects, unit, _ = self._parts
        outputs = self.outputs if effects is None else self.outputs + context[..., 1:] @ effects.T
        share = outputs.clamp(max=0).exp() + outputs.clamp(min=0)
        return family(unit * context[..., :1] * (share + _LEAST_SHARE))

    def _rows(self, counts: Tensor) -> Tensor:
        stored = self.context if self._parts[-1] else self.context[..., 1:]
        return torch.cat([counts, stored.expand(*counts.shape[:-1], stored.shape[-1])], -1)

    @property
    def mean(self) -> Tensor:
        return self._rows(self._counts(self.context).mean)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:
        with torch.no_grad():
            counts = self._counts(self.context).expand(torch.Size([*self.batch_shape, self.num_counts]))
            return self._rows(counts.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        context = context_of(value, self.num_counts, self._parts[-1])
        return self._counts(context).log_prob(value[..., : self.num_counts]).sum(-1)


@given.register
def _(likelihood: CountRows, x: Tensor) -> CountRows:
    return likelihood.given(x.flatten(1))


@contrast.register
def _(likelihood: CountRows, other: CountRows) -> Contrast:
    return likelihood.exceeding(other)
