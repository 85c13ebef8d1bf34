r"""Rows of values whose likelihood is conditional on a context that belongs to the row.

A row holds D values, and behind them K covariates c, such as the batch of a datum as zeros and a one,

.. math:: x = (x_1, \dots, x_D, c_1, \dots, c_K), \qquad
    \log p(x) = \sum_d \log p\Big(x_d;\; f_d + \sum_k a_{dk} c_k\Big).

The density is that of the values given the context.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, constraints
from torch.types import _size

from vsc_pyro.distributions.families import given, is_bernoulli, noise_scale, values_of
from vsc_pyro.distributions.linear_normal import LinearNormal, as_linear
from vsc_pyro.distributions.observed import Observed, observed_only


class Rows(constraints.Constraint):
    """Rows of `num_values` values in the support `values`, with a finite context behind them."""

    event_dim = 1
    remedy = "rescale them or use another decoder; the context, behind the values of a row, is never missing"

    def __init__(self, values: constraints.Constraint, num_values: int) -> None:
        self.is_discrete = values.is_discrete
        self.values = values
        self.num_values = num_values

    def check(self, value: Tensor) -> Tensor:
        values, context = value.tensor_split([self.num_values], -1)
        return self.values.check(values).all(-1) & context.isfinite().all(-1)

    def __repr__(self) -> str:
        return f"rows of {self.num_values} values ({self.values}) with a finite context"


class _OfObserved(NamedTuple):
    """A family of the values that are observed, see `Observed`."""

    family: Callable[[Tensor], Any]

    def __call__(self, parameters: Tensor) -> Observed:
        return Observed(self.family(parameters), validate_args=False)


class ContextRows(TorchDistribution):
    r"""Independent values given the covariates of their row; see the module's docstring.

    `log_prob` takes the context from the row. `mean` and `sample` return rows with the context `context`, and those of
    ``given(distribution, x)`` rows with the context of the data x.

    Args:
        outputs: f, shape ``(*, D)``.
        context: covariates of draws, shape ``(K,)`` or one that broadcasts, ``(*, K)``.
        family: from outputs ``(*, D)`` to the distribution of single values.
        effects: a, shape ``(D, K)``.
        linear: the `LinearNormal` whose mean the outputs are, if `family` is normal and they are linear in a code.

    Shapes:
        `event_shape` is ``(D + K,)``.

    Example:
        >>> import torch
        >>> from pyro.distributions import Normal
        >>> from vsc_pyro.distributions import ContextRows, given
        >>> p = ContextRows(torch.zeros(2), torch.tensor([0.5]), lambda f: Normal(f, 1.0), torch.tensor([[2.0], [4.0]]))
        >>> p.mean, given(p, torch.tensor([[7.0, 7.0, 1.0]])).mean
        (tensor([1.0000, 2.0000, 0.5000]), tensor([[2., 4., 1.]]))
    """

    arg_constraints: ClassVar[Any] = {}

    def __init__(
        self,
        outputs: Tensor,
        context: Tensor,
        family: Callable[[Tensor], Any],
        effects: Tensor | None,
        linear: LinearNormal | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self._start({"family": family, "effects": effects, "linear": linear}, outputs, context, validate_args)

    def _start(self, parts: dict[str, Any], outputs: Tensor, context: Tensor, validate_args: bool | None) -> None:
        self.outputs, self.context = outputs, context
        self.parts = parts
        batch_shape = torch.broadcast_shapes(outputs.shape[:-1], context.shape[:-1])
        num_stored = self._stored.shape[-1]
        super().__init__(batch_shape, torch.Size([self.num_values + num_stored]), validate_args=validate_args)

    def _changed(self, validate_args: bool | None = None, **parts: Any) -> ContextRows:
        parts = {"outputs": self.outputs, "context": self.context, **self.parts, **parts}
        return type(self)(**parts, validate_args=validate_args)

    @property
    def num_values(self) -> int:
        return self.outputs.shape[-1]

    @property
    def _stored(self) -> Tensor:
        """The columns of a row that hold the context of draws."""
        return self.context

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride] as torch declares it
        return Rows(self.values.support, self.num_values)

    def context_of(self, rows: Tensor) -> Tensor:
        """Return the context of rows ``(*, D + K)``, in the form of `context`."""
        return rows[..., self.num_values :]

    def given(self, rows: Tensor) -> ContextRows:
        """Return the distribution whose draws have the context of `rows`, shape ``(*, D + K)``."""
        return self._changed(context=self.context_of(rows))

    def observed(self) -> ContextRows:
        """Return the distribution of rows some of whose values are missing, NaN; see `Observed`."""
        family = self.parts["family"]
        return self if isinstance(family, _OfObserved) else self._changed(family=_OfObserved(family))

    def without_effects(self, rows: Tensor) -> Tensor:
        """Return the values of `rows` ``(*, D + K)`` minus the effects of their context, shape ``(*, D)``."""
        return rows[..., : self.num_values] - self.context_of(rows) @ self.parts["effects"].T

    def expand(self, batch_shape: _size, _instance: ContextRows | None = None) -> ContextRows:
        return self._changed(validate_args=False, outputs=self.outputs.expand(*batch_shape, self.num_values))

    def values_at(self, context: Tensor) -> Any:
        """Return the distribution of single values in a context, `batch_shape` ``(*, D)``."""
        return self.parts["family"](self.outputs + context @ self.parts["effects"].T)

    @property
    def values(self) -> Any:
        """The distribution of single values in the context of draws."""
        return self.values_at(self.context)

    def _rows(self, values: Tensor) -> Tensor:
        return torch.cat([values, self._stored.expand(*values.shape[:-1], -1)], -1)

    @property
    def mean(self) -> Tensor:
        return self._rows(self.values.mean)

    def sample(self, sample_shape: _size = torch.Size()) -> Tensor:
        with torch.no_grad():
            values = self.values.expand(torch.Size([*self.batch_shape, self.num_values]))
            return self._rows(values.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.values_at(self.context_of(value)).log_prob(value[..., : self.num_values]).sum(-1)


@given.register
def _(likelihood: ContextRows, x: Tensor) -> ContextRows:
    return likelihood.given(x.flatten(1))


@values_of.register
def _(likelihood: ContextRows) -> Independent:
    return Independent(likelihood.values, 1)


@observed_only.register
def _(likelihood: ContextRows) -> ContextRows:
    return likelihood.observed()


@as_linear.register
def _(likelihood: ContextRows) -> tuple[LinearNormal, Callable[[Tensor], Tensor]] | None:
    linear = likelihood.parts.get("linear")
    if linear is None or isinstance(likelihood.parts["family"], _OfObserved):
        return None
    return linear, likelihood.without_effects


is_bernoulli.register(ContextRows, lambda p: is_bernoulli(p.values))
noise_scale.register(ContextRows, lambda p: noise_scale(p.values))
