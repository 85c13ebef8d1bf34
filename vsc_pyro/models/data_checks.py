"""Checks of data against a model's likelihood: finite, of its shape, and in its support."""

from __future__ import annotations

import math
from typing import cast

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
    """Return `data` as `vsc_pyro.datasets.as_dataset` does, and refuse a `DataLoader`.

    Raises:
        ValueError: a `DataLoader`, data without a datum, or data not of shape ``(N, ...)``.
    """
    if isinstance(data, DataLoader):
        raise ValueError(
            "data must be in memory, a Dataset or a tensor of shape (N, ...), got a DataLoader, which only fit, "
            "evaluate, bounds, codes, encode, refine and to_arviz accept; pass torch.cat of its batches"
        )
    return as_dataset(data)


def as_events(x: Tensor, likelihood: Distribution) -> Tensor:
    """Reshape data ``(B, ...)`` to the likelihood's event shape.

    Raises:
        ValueError: data with another number of values, or with as many in another order, such as channels last.
    """
    shape = likelihood.event_shape
    if math.prod(x.shape[1:]) != math.prod(shape):
        raise ValueError(
            f"data of shape (N, {inner(x)}) do not fit a decoder of shape {tuple(shape)}; {remedy_of_size(x, shape)}"
        )
    check_layout(x, shape, "a decoder")
    return x.reshape(x.shape[:1] + shape)


def remedy_of_size(x: Tensor, shape: torch.Size | tuple[int, ...]) -> str:
    """Return the remedy for data ``(B, ...)`` with another number of values than a model of `shape` takes."""
    last = x.ndim - len(shape) - 1
    if last > 0 and x.shape[-len(shape) :] == torch.Size(shape):
        return f"pass x.flatten(0, {last}), one row for each datum"
    return f"build the model with the shape of one datum, {inner(x)}"


def check_layout(x: Tensor, shape: torch.Size | tuple[int, ...], part: str) -> None:
    """Raise `ValueError` if data ``(B, ...)`` have the values of `shape` in another order.

    Flattening keeps the order, and so does adding or removing a dimension of size 1.
    """
    own, expected = ([size for size in sizes if size != 1] for sizes in (x.shape[1:], shape))
    if own != expected and len(own) > 1 and len(expected) > 1:
        raise ValueError(
            f"data of shape (N, {inner(x)}) have their values in another order than {part} of shape {tuple(shape)} "
            "expects; permute the data's dimensions (channels come first), or flatten them"
        )


def inner(x: Tensor) -> str:
    """Return the shape of a datum as text."""
    return ", ".join(map(str, x.shape[1:]))


def check_finite(x: Tensor, dtype: torch.dtype, allow_nan: bool = False, remedy: str = "") -> None:
    """Raise `ValueError` unless all data ``(N, ...)`` are finite in the precision of the model, or NaN if allowed.

    Args:
        x: the data.
        dtype: of the model.
        allow_nan: True for a model that takes missing values.
        remedy: end of the message, what this model can do about NaN.
    """
    if allow_nan:
        x = x.nan_to_num(0.0, torch.inf, -torch.inf)
    # A number that is finite in the data's type may overflow in the model's. Minimum and maximum are the quickest test.
    if not x.numel() or torch.stack(x.aminmax()).to(dtype).isfinite().all():
        return
    finite = torch.cat([chunk.to(dtype).isfinite().flatten(1).sum(1) for chunk in x.split(_ROWS_AT_ONCE)])
    bad = x[0].numel() - finite
    if bad.any():
        raise ValueError(
            f"data holds {int(bad.sum())} NaN or infinite values in the model's type, {dtype}, the first of them in "
            f"datum {int(bad.nonzero()[0, 0])}; remove these data, or impute or rescale the values{remedy}"
        )


def check_resolved(x: Tensor, dtype: torch.dtype) -> None:
    """Raise `ValueError` if a value varies over data ``(N, ...)``, but by less than `dtype` resolves at its size."""
    if x.dtype.itemsize <= dtype.itemsize or len(x) == 0:
        return
    least, most = x.flatten(1).aminmax(dim=0)
    kind = torch.finfo(dtype)
    spacing = torch.maximum(least.abs(), most.abs()).mul(kind.eps).clamp(min=kind.tiny)
    lost = (most > least) & (most - least < spacing)
    if lost.any():
        at = int(lost.nonzero()[0, 0])
        raise ValueError(
            f"data vary from {float(least[at])!r} to {float(most[at])!r} in value {at} of a datum, which the model's "
            f"type, {dtype}, does not resolve ({int(lost.sum())} of {len(lost)} values are such); subtract the mean "
            "and divide by the standard deviation first, or call model.double()"
        )


def check_figure(name: str, values: Tensor, first: int = 0) -> None:
    """Raise `ValueError` if any of `values`, shape ``(N, ...)``, is not finite; the message names the first such datum.

    Args:
        name: what the values are.
        values: one row for each datum.
        first: index of the first row's datum.
    """
    finite = values.reshape(len(values), -1).isfinite()
    bad = ~finite.all(1)
    if bad.any():
        datum = int(bad.nonzero()[0, 0])
        value = float(values[datum].flatten()[~finite[datum]][0])
        raise ValueError(
            f"the {name} of datum {first + datum} is {value} ({int(bad.sum())} of {len(bad)} data are not finite); "
            "rescale these data or remove them, or train the model again if it has diverged"
        )


def are_in_support(x: Tensor, likelihood: Distribution) -> Tensor:
    """Return a 0-d bool tensor, True if all data ``(B, ...)`` lie in the likelihood's support; no device sync."""
    return _support(likelihood).check(as_events(x, likelihood)).all()


def _support(likelihood: Distribution) -> constraints.Constraint:
    return cast(constraints.Constraint, likelihood.support)  # torch's stub allows None


def check_support(x: Tensor, likelihood: Distribution, like: Tensor) -> None:
    """Raise `ValueError` unless all data ``(N, ...)`` lie in the likelihood's support.

    Args:
        x: the data.
        likelihood: of the model.
        like: a tensor with the device and type to check the data in.
    """
    chunks = (chunk.to(like) for chunk in x.split(_ROWS_AT_ONCE))
    if not all(_ends_are_in_support(chunk, likelihood) or are_in_support(chunk, likelihood) for chunk in chunks):
        low, high = torch.where(x.isnan(), 0.0, x).aminmax()
        raise ValueError(
            f"{must_be_inside(likelihood)}, got values from {low:.4g} to {high:.4g}; {remedy_of(likelihood)}"
        )


def remedy_of(likelihood: Distribution) -> str:
    """Return what to do about data outside the support."""
    return getattr(_support(likelihood), "remedy", "rescale them or use another decoder")


def _ends_are_in_support(x: Tensor, likelihood: Distribution) -> bool:
    """Return True if the support is an interval that holds minimum and maximum, and so every value between them."""
    interval = _support(likelihood)
    while isinstance(interval, constraints.independent):
        interval = interval.base_constraint
    if not isinstance(interval, _INTERVALS):
        return False
    ends = torch.stack(as_events(x, likelihood).aminmax())
    shape = likelihood.event_shape
    return bool(interval.check(ends.reshape(2, *[1] * len(shape)).expand(2, *shape)).all())


def must_be_inside(likelihood: Distribution) -> str:
    """Return the first half of an error message: the support that data must lie in."""
    return f"data must lie in the support of the likelihood, {getattr(likelihood, 'base_dist', likelihood).support}"
