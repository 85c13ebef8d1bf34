"""Checks that data are such as a model's likelihood can have made: finite, of its shape, and in its support."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.utils.data import DataLoader

from vsc_pyro.datasets import Dataset, as_dataset

_ROWS_AT_ONCE = 4096
_INTERVALS = (
    constraints.interval,
    constraints.half_open_interval,
    constraints.greater_than,
    constraints.greater_than_eq,
    constraints.less_than,
    type(constraints.real),
)


def in_memory(data: Dataset | Tensor | np.ndarray) -> Dataset:
    """As `vsc_pyro.datasets.as_dataset`, for what does not take a `DataLoader`.

    Raises:
        ValueError: a `DataLoader`, or data without a datum, or not of shape ``(N, ...)``.
    """
    if isinstance(data, DataLoader):
        raise ValueError(
            "data must be in memory, a Dataset or a tensor of shape (N, ...), got a DataLoader, which only "
            "fit, codes and encode take; pass torch.cat of its batches, or part of them"
        )
    return as_dataset(data)


def as_events(x: Tensor, likelihood: Distribution) -> Tensor:
    """Data ``(B, ...)`` in the shape of the likelihood's events.

    Raises:
        ValueError: data of another number of values, or of the same in another order, such as channels last.
    """
    shape = likelihood.event_shape
    if math.prod(x.shape[1:]) != math.prod(shape):
        raise ValueError(
            f"data of shape (N, {inner(x)}) do not fit a decoder of shape {tuple(shape)}; "
            "pass the decoder the shape of one datum"
        )
    check_layout(x, shape, "a decoder")
    return x.reshape(x.shape[:1] + shape)


def check_layout(x: Tensor, shape: torch.Size | tuple[int, ...], part: str) -> None:
    """Raise `ValueError` where data ``(B, ...)`` have as many values as `shape`, in the order of another shape.

    Flat data, and those of which a dimension of size 1 is left out or added, have them in the same order.
    """
    own, expected = ([size for size in sizes if size != 1] for sizes in (x.shape[1:], shape))
    if own != expected and len(own) > 1 and len(expected) > 1:
        raise ValueError(
            f"data of shape (N, {inner(x)}) have their values in another order than {part} of shape {tuple(shape)} "
            "takes them; permute the data's dimensions (channels come first), or flatten them"
        )


def inner(x: Tensor) -> str:
    """The shape of a datum, as text."""
    return ", ".join(map(str, x.shape[1:]))


def check_finite(x: Tensor, dtype: torch.dtype) -> None:
    """Raise `ValueError` unless all data ``(N, ...)`` are finite in the precision of a model."""
    # A number that fits the data's own type may be infinite in the model's. The two ends of the data tell in a tenth of
    # the time whether there is one.
    if torch.stack(x.aminmax()).to(dtype).isfinite().all():
        return
    finite = torch.cat([chunk.to(dtype).isfinite().flatten(1).sum(1) for chunk in x.split(_ROWS_AT_ONCE)])
    bad = x[0].numel() - finite
    if bad.any():
        raise ValueError(
            f"data holds {int(bad.sum())} NaN or infinite values in the model's type, {dtype}, the first of them in "
            f"datum {int(bad.nonzero()[0, 0])}; remove, impute or rescale them first"
        )


def check_figure(name: str, values: Tensor, first: int = 0) -> None:
    """Raise `ValueError` that names the first datum of which `values`, shape ``(N, ...)``, are not finite.

    They are those of data counted from `first` on.
    """
    finite = values.reshape(len(values), -1).isfinite()
    bad = ~finite.all(1)
    if bad.any():
        datum = int(bad.nonzero()[0, 0])
        value = float(values[datum].flatten()[~finite[datum]][0])
        raise ValueError(
            f"the {name} of datum {first + datum} is {value} ({int(bad.sum())} of {len(bad)} data are like that); "
            "rescale these data or leave them out, or train the model anew if it has diverged"
        )


def are_in_support(x: Tensor, likelihood: Distribution) -> Tensor:
    """Whether all data ``(B, ...)`` lie in the support of the likelihood: a 0-d tensor, not waited for."""
    return likelihood.support.check(as_events(x, likelihood)).all()


def check_support(x: Tensor, likelihood: Distribution, like: Tensor) -> None:
    """Raise `ValueError` unless all data ``(N, ...)``, taken where the tensor `like` is, lie in that support."""
    chunks = (chunk.to(like) for chunk in x.split(_ROWS_AT_ONCE))
    if not all(_ends_are_in_support(chunk, likelihood) or are_in_support(chunk, likelihood) for chunk in chunks):
        low, high = float(x.min()), float(x.max())
        raise ValueError(
            f"{must_be_inside(likelihood)}, got values from {low:.4g} to {high:.4g}; "
            "rescale them or take another decoder"
        )


def _ends_are_in_support(x: Tensor, likelihood: Distribution) -> bool:
    """Whether the least and the greatest value are, and with them all between: sooner told than for each value."""
    each = likelihood.support
    while isinstance(each, constraints.independent):
        each = each.base_constraint
    if not isinstance(each, _INTERVALS):
        return False
    ends = torch.stack(as_events(x, likelihood).aminmax())
    return bool(
        each.check(ends.reshape(2, *[1] * len(likelihood.event_shape)).expand(2, *likelihood.event_shape)).all()
    )


def must_be_inside(likelihood: Distribution) -> str:
    """Say of what support, the first half of an error."""
    base = likelihood.base_dist if hasattr(likelihood, "base_dist") else likelihood
    return f"data must lie in the support of the likelihood, {base.support}"
