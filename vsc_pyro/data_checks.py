"""Checks that data are such as a model's likelihood can have made: finite, of its shape, and in its support."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import DataLoader

from vsc_pyro.datasets import Dataset, as_dataset

_ROWS_AT_ONCE = 4096


def in_memory(data: Dataset | Tensor | np.ndarray) -> Dataset:
    """As `vsc_pyro.datasets.as_dataset`, for what does not take a `DataLoader`.

    Raises:
        ValueError: a `DataLoader`, or data without a datum, or not of shape ``(N, ...)``.
    """
    if isinstance(data, DataLoader):
        raise ValueError(
            "data must be in memory, a Dataset or a tensor of shape (N, ...), got a DataLoader, which only fit takes; "
            "pass torch.cat of its batches, or part of them"
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
    # A number that fits the data's own type may be infinite in the model's.
    finite = torch.cat([chunk.to(dtype).isfinite().flatten(1).sum(1) for chunk in x.split(_ROWS_AT_ONCE)])
    bad = x[0].numel() - finite
    if bad.any():
        raise ValueError(
            f"data holds {int(bad.sum())} NaN or infinite values in the model's type, {dtype}, the first of them in "
            f"datum {int(bad.nonzero()[0, 0])}; remove, impute or rescale them first"
        )


def are_in_support(x: Tensor, likelihood: Distribution) -> Tensor:
    """Whether all data ``(B, ...)`` lie in the support of the likelihood: a 0-d tensor, not waited for."""
    return likelihood.support.check(as_events(x, likelihood)).all()


def check_support(x: Tensor, likelihood: Distribution, like: Tensor) -> None:
    """Raise `ValueError` unless all data ``(N, ...)``, taken where the tensor `like` is, lie in that support."""
    if not all(are_in_support(chunk.to(like), likelihood) for chunk in x.split(_ROWS_AT_ONCE)):
        low, high = float(x.min()), float(x.max())
        raise ValueError(
            f"{must_be_inside(likelihood)}, got values from {low:.4g} to {high:.4g}; "
            "rescale them or take another decoder"
        )


def must_be_inside(likelihood: Distribution) -> str:
    """Say of what support, the first half of an error."""
    base = likelihood.base_dist if hasattr(likelihood, "base_dist") else likelihood
    return f"data must lie in the support of the likelihood, {base.support}"
