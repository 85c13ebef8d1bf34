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
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pad

from vsc_pyro.distributions.context import ContextRows, Rows
from vsc_pyro.distributions.families import Contrast, contrast

# Keeps the rate of a gene with a very negative output from rounding to 0, where the log-density has no gradient.
_LEAST_SHARE = 1e-8


class WholeCounts(Rows):
    """Rows of whole numbers of at least 0, with a size above 0 and finite covariates."""

    remedy = (
        "pass raw counts, not logarithms or normalised values, without rows of zeros, and sizes above 0 behind the "
        "counts if the decoder's size is 'given'; size and covariates are never missing"
    )

    def __init__(self, counts: constraints.Constraint, num_counts: int, size_is_given: bool) -> None:
        super().__init__(counts, num_counts)
        self._size_is_given = size_is_given

    def check(self, value: Tensor) -> Tensor:
        return super().check(value) & (context_of(value, self.num_values, self._size_is_given)[..., 0] > 0)

    def __repr__(self) -> str:
        return f"rows of {self.num_values} counts (whole numbers of at least 0) of a size above 0"


def context_of(rows: Tensor, num_counts: int, size_is_given: bool) -> Tensor:
    """Return size and covariates of rows ``(*, D + ...)``, shape ``(*, 1 + K)``."""
    counts, stored = rows.tensor_split([num_counts], -1)
    return stored if size_is_given else torch.cat([counts.sum(-1, keepdim=True), stored], -1)


class CountRows(ContextRows):
    r"""Independent counts given the size and the covariates of their row; see the module's docstring.

    It behaves as `ContextRows`, with the size in front of the covariates.

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
        parts = {"family": family, "effects": effects, "unit": unit, "size_is_given": size_is_given}
        self._start(parts, outputs, context, validate_args)

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride] as torch declares it
        return WholeCounts(self.values.support, self.num_values, self.parts["size_is_given"])

    def exceeding(self, other: CountRows) -> Contrast:
        r"""Return the changes of the rates from `other` in standard deviations of a count, see `contrast`.

        .. math:: 2 (\mu - \mu') / (\sigma + \sigma')

        Among Poisson counts this is :math:`2 (\sqrt\mu - \sqrt{\mu'})`. It is a log fold change shrunk by the noise
        of the count: the same fold change is worth less in a gene with few counts or overdispersed ones. The context of
        a row does not change.
        """
        ours, theirs = self.values, other.values
        changes = 2 * (ours.mean - theirs.mean) / (ours.stddev + theirs.stddev)
        stored = (0, self.event_shape[0] - self.num_values)
        return Contrast(
            pad(changes, stored), "in standard deviations of a count", pad(ours.mean / theirs.mean, stored, value=1.0)
        )

    @property
    def _stored(self) -> Tensor:
        return self.context if self.parts["size_is_given"] else self.context[..., 1:]

    def context_of(self, rows: Tensor) -> Tensor:
        return context_of(rows, self.num_values, self.parts["size_is_given"])

    def observed(self) -> ContextRows:
        if not self.parts["size_is_given"]:
            raise ValueError(
                "the size of a row, the sum of its counts, is not known if counts may be missing; build the decoder "
                "with size='given' and pass the sizes, Dataset(..., context=sizes)"
            )
        return super().observed()

    def values_at(self, context: Tensor) -> Any:
        size, covariates = context.tensor_split([1], -1)
        outputs, effects = self.outputs, self.parts["effects"]
        if effects is not None:
            outputs = outputs + covariates @ effects.T
        share = outputs.clamp(max=0).exp() + outputs.clamp(min=0)
        return self.parts["family"](self.parts["unit"] * size * (share + _LEAST_SHARE))


@contrast.register
def _(likelihood: CountRows, other: CountRows) -> Contrast:
    return likelihood.exceeding(other)
