"""Data sets as tensors in memory, with the ground truth of synthetic data."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from vsc_pyro.datasets.bernoulli import bernoulli
from vsc_pyro.datasets.numbers import as_numbers

BINARIZATIONS = ("dynamic", "static", None)


class Factors(NamedTuple):
    """Ground truth of synthetic data: the factors of each datum, and their values.

    Attributes:
        presence: bool tensor of shape ``(N, K)``, True where a factor is on.
        values: float tensor of shape ``(N, K)``, the factor's value where it is on, 0 elsewhere.
        names: K different names.
    """

    presence: Tensor
    values: Tensor
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Data in memory.

    Attributes:
        images: float tensor of shape ``(N, ...)``; for images ``(N, channels, height, width)``.
        labels: integer tensor of shape ``(N,)``, or an array, which is converted; or None.
        binarize: what a model sees of the images: ``"dynamic"`` (fresh draws), ``"static"`` (already drawn) or None.
        name: name in tables.
        factors: ground truth of synthetic data, or None.

    Raises:
        ValueError: no datum, images that are not a floating-point tensor, labels that are not integers or of another
            length, values outside [0, 1] under dynamic binarisation, or factors that do not fit the data or contradict
            themselves.

    >>> import vsc_pyro as vsc
    >>> data = vsc.Dataset(torch.rand(10, 64), labels=torch.arange(10), binarize="dynamic")
    >>> len(data[:4]), data.draw(slice(4)).unique()
    (4, tensor([0., 1.]))
    """

    images: Tensor
    labels: Tensor | None = None
    binarize: str | None = None
    name: str = "data"
    factors: Factors | None = None

    def __post_init__(self) -> None:
        check_binarize(self.binarize, BINARIZATIONS)
        if not isinstance(self.images, Tensor) or not self.images.is_floating_point():
            kind = self.images.dtype if isinstance(self.images, Tensor) else type(self.images).__name__
            raise ValueError(
                f"images must be a floating-point tensor, got {kind}; convert with torch.as_tensor(x).float()"
            )
        if self.images.ndim < 2 or self.images.numel() == 0:
            raise ValueError(
                f"data must have shape (N, ...) with at least one datum of at least one value, "
                f"got {tuple(self.images.shape)}"
            )
        labels = cast(object, self.labels)  # annotated as a tensor, but arrays are accepted
        if isinstance(labels, np.ndarray) and labels.dtype.kind in "biu":
            object.__setattr__(self, "labels", torch.as_tensor(labels))
        if self.labels is not None and not isinstance(self.labels, Tensor):
            kind = type(self.labels).__name__
            raise ValueError(f"labels must be an integer tensor, got {kind}; pass torch.as_tensor(labels)")
        if self.labels is not None and self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must have shape ({len(self.images)},), one for each datum, got {tuple(self.labels.shape)}"
            )
        if self.binarize == "dynamic":
            self._check_grey_levels("dynamic")
        if self.factors is not None:
            _check_factors(self.factors, len(self.images))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Tensor) -> Dataset:
        """Return the data of a slice, ``test[:16]``, or of a tensor of indices or bools, with labels and factors."""
        if not isinstance(rows, (slice, Tensor)):
            raise TypeError(f"index data by a slice or a tensor of indices, got {rows!r}; one datum is data[i : i + 1]")
        if isinstance(rows, Tensor) and rows.ndim != 1:
            raise ValueError(f"a tensor of indices must have one dimension, got shape {tuple(rows.shape)}")
        if not len(self.images[rows]):
            raise ValueError(f"{rows!r} selects none of the {len(self)} data")
        parts: dict[str, Any] = {"images": self.images[rows]}
        if self.labels is not None:
            parts["labels"] = self.labels[rows]
        if self.factors is not None:
            presence, values, names = self.factors
            parts["factors"] = Factors(presence[rows], values[rows], names)
        return dataclasses.replace(self, **parts)

    def to(self, like: Tensor) -> Dataset:
        """Return the data on the device of the tensor `like`, images and factor values in its floating-point type."""
        labels = None if self.labels is None else self.labels.to(like.device)
        factors = self.factors
        if factors is not None:
            factors = Factors(factors.presence.to(like.device), factors.values.to(like), factors.names)
        return dataclasses.replace(self, images=self.images.to(like), labels=labels, factors=factors)

    def draw(self, indices: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        """Return these data as a model sees them, shape ``(B, ...)``; under dynamic binarisation, a fresh draw."""
        batch = self.images[indices]
        return bernoulli(batch, generator) if self.binarize == "dynamic" else batch

    def binarized(self, binarize: str | None, generator: torch.Generator | None = None) -> Dataset:
        """Return the data under another binarisation; ``"static"`` draws now, from `generator`.

        Raises:
            ValueError: an unknown binarisation, or values that are not grey levels in [0, 1].
        """
        check_binarize(binarize, BINARIZATIONS)
        images = self.images
        if binarize == "static":
            self._check_grey_levels("static")
            images = torch.bernoulli(images, generator=generator)
        return dataclasses.replace(self, images=images, binarize=binarize)

    def _check_grey_levels(self, binarize: str) -> None:
        if not ((self.images >= 0) & (self.images <= 1)).all():
            raise ValueError(
                f"{binarize} binarisation takes grey levels as probabilities, so {self.name} must be finite and lie in "
                f"[0, 1]; got values from {self.images.min():.4g} to {self.images.max():.4g}; pass binarize=None"
            )


class Split(NamedTuple):
    """Training and test part of a data set."""

    train: Dataset
    test: Dataset

    def binarized(self, binarize: str | None, seed: int = 0) -> Split:
        """Apply `Dataset.binarized` to both parts; the static draw uses `seed`."""
        generator = torch.Generator().manual_seed(seed)
        return Split(*(part.binarized(binarize, generator) for part in self))


def as_dataset(data: Dataset | Tensor | np.ndarray) -> Dataset:
    """Return `data` itself, or a `Dataset` made of an array or tensor of numbers of shape ``(N, ...)``.

    Raises:
        ValueError: no datum, data not of shape ``(N, ...)``, or no real numbers, such as complex ones.
    """
    if isinstance(data, Dataset):
        return data
    images = as_numbers(data)
    return Dataset(images if images.is_floating_point() else images.to(torch.get_default_dtype()))


def check_binarize(binarize: str | None, known: tuple[str | None, ...]) -> None:
    """Raise `ValueError` unless `binarize` is among the `known` ones."""
    if binarize not in known:
        raise ValueError(f"unknown binarisation {binarize!r}; known are {', '.join(map(repr, known))}")


def _check_factors(factors: Factors, num_data: int) -> None:
    if not isinstance(factors, Factors):
        raise ValueError(f"factors must be a Factors(presence, values, names), got {type(factors).__name__}")
    presence, values, names = factors
    shape = (num_data, len(names))
    if not isinstance(presence, Tensor) or presence.dtype != torch.bool or presence.shape != shape:
        raise ValueError(
            f"factors.presence must be a bool tensor of shape {shape}, a row for each datum and a column for each "
            f"name, got {_kind(presence)}"
        )
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.shape != shape:
        raise ValueError(
            f"factors.values must be a floating-point tensor of shape {shape}, a row for each datum and a column for "
            f"each name, got {_kind(values)}"
        )
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"factors.names must differ, got {', '.join(map(repr, twice))} more than once")
    if not torch.isfinite(values).all():
        raise ValueError(f"factors.values must be finite, got {int((~torch.isfinite(values)).sum())} that are not")
    if (values[~presence] != 0).any():
        raise ValueError(
            f"factors.values must be 0 where a factor is absent, got {int((values[~presence] != 0).sum())} that are "
            "not; multiply them by the presence"
        )


def _kind(array: object) -> str:
    return f"{array.dtype} of shape {tuple(array.shape)}" if isinstance(array, Tensor) else type(array).__name__
