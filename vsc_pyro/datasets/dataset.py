"""Data sets as tensors in memory, with the ground truth of synthetic data."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Sequence
from types import EllipsisType
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from vsc_pyro.datasets.bernoulli import bernoulli
from vsc_pyro.datasets.labels import as_labels
from vsc_pyro.datasets.numbers import as_numbers

BINARIZATIONS = ("dynamic", "static", None)
_NAMES_SHOWN = 3


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

    def __repr__(self) -> str:
        names = str(self.names)
        if len(self.names) > _NAMES_SHOWN:
            names = f"({', '.join(map(repr, self.names[:_NAMES_SHOWN]))}, ... {len(self.names)} in all)"
        return f"Factors(presence={self.presence}, values={self.values}, names={names})"


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Data in memory.

    ``data[i]`` is one datum as a model sees it, with its label if there are labels, so that a `DataLoader`,
    `torch.utils.data.random_split` and scikit-learn's `train_test_split` take a `Dataset`. ``data[rows]`` is a
    `Dataset` of a slice, a list, or an array or tensor of indices or bools.

    Attributes:
        images: float tensor of shape ``(N, ...)``; for images ``(N, channels, height, width)``. Other numbers, such as
            those of an array or data frame, are converted, see `as_dataset`.
        labels: integer tensor of shape ``(N,)``, or None. Whole numbers or strings of any list, array, pandas Series or
            Categorical are converted, strings to their places in `class_names`.
        class_names: names of the classes 0, 1, ..., which figures and pages show; None if classes have only numbers.
            Labels that are strings have their sorted names. To number several sets alike, pass the names of all.
        binarize: what a model sees of the images: ``"dynamic"`` (fresh draws), ``"static"`` (already drawn) or None.
        name: name in tables.
        factors: ground truth of synthetic data, or None.

    Args:
        context: numbers that are known of each datum, such as a size or the batch as zeros and a one; shape ``(N, C)``
            or ``(N,)``, or a list of such arrays. They become the last columns of `images`, whose data are flattened,
            so that a `DataLoader`, a split or a slice keeps them. What a decoder makes of them, it says, see
            `vsc_pyro.NormalDecoder` and `vsc_pyro.PoissonDecoder`; an encoder and a prior see them as a part of x.

    Raises:
        ValueError: no datum, images that are not real numbers, labels that are neither whole numbers nor strings, or
            missing, of another length or not of `class_names`; values outside [0, 1] under dynamic binarisation, or
            factors that do not fit the data or contradict themselves; a context of another length, or beside dynamic
            binarisation.

    >>> import vsc_pyro as vsc
    >>> data = vsc.Dataset(torch.rand(10, 64), labels=torch.arange(10), binarize="dynamic")
    >>> len(data[:4]), data.draw(slice(4)).unique()
    (4, tensor([0., 1.]))
    >>> cells = vsc.Dataset(torch.rand(3, 5), labels=["T", "B", "T"])
    >>> cells.labels, cells.class_names
    (tensor([1, 0, 1]), ('B', 'T'))
    >>> vsc.Dataset(torch.zeros(2, 3), context=[torch.tensor([10.0, 30.0]), torch.eye(2)]).images
    tensor([[ 0.,  0.,  0., 10.,  1.,  0.],
            [ 0.,  0.,  0., 30.,  0.,  1.]])
    """

    images: Tensor
    labels: Tensor | None = None
    class_names: Sequence[str] | None = dataclasses.field(default=None, kw_only=True)
    binarize: str | None = None
    name: str = "data"
    factors: Factors | None = None
    context: dataclasses.InitVar[Any] = None

    def __post_init__(self, context: Any) -> None:
        check_binarize(self.binarize, BINARIZATIONS)
        object.__setattr__(self, "images", _as_floats(self.images, "images"))
        if self.images.ndim < 2 or self.images.numel() == 0:
            raise ValueError(
                f"data must have shape (N, ...) with at least one datum of at least one value, "
                f"got {tuple(self.images.shape)}"
            )
        if context is not None:
            object.__setattr__(self, "images", self._with_context(context))
        if self.labels is not None:
            labels, names = as_labels(self.labels, len(self.images), self.class_names)
            object.__setattr__(self, "labels", labels)
            object.__setattr__(self, "class_names", names)
        elif self.class_names is not None:
            raise ValueError("class_names are the names of labels, and labels is None; pass both or neither")
        if self.binarize == "dynamic":
            self._check_grey_levels("dynamic")
        if self.factors is not None:
            _check_factors(self.factors, len(self.images))

    def _with_context(self, context: Any) -> Tensor:
        if self.binarize == "dynamic":
            raise ValueError("context and binarize='dynamic' exclude each other; pass data that are binarised")
        columns = [self.images.flatten(1)]
        for part in context if isinstance(context, (list, tuple)) else [context]:
            numbers = _as_floats(part, "context")
            if numbers.ndim not in (1, 2) or len(numbers) != len(self.images):
                raise ValueError(
                    f"context must have shape (N,) or (N, C), a row for each of the {len(self.images)} data, got "
                    f"{tuple(numbers.shape)}"
                )
            columns.append(numbers.reshape(len(numbers), -1).to(self.images))
        return torch.cat(columns, 1)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> torch.Size:
        """Shape of the images, ``(N, ...)``."""
        return self.images.shape

    def class_name(self, label: int) -> int | str:
        """Return the name of a label, or the label itself if classes have no names."""
        return label if self.class_names is None else self.class_names[label]

    @overload
    def __getitem__(self, rows: int) -> Tensor | tuple[Tensor, Tensor]: ...
    @overload
    def __getitem__(self, rows: slice | list | Tensor | np.ndarray | tuple[Any, EllipsisType]) -> Dataset: ...
    def __getitem__(self, rows: Any) -> Any:
        """Return one datum for a number, ``test[3]``; else the data of some rows, with labels and factors."""
        if isinstance(rows, tuple) and len(rows) == 2 and rows[1] is ...:
            rows = rows[0]  # scikit-learn asks for data[rows, ...]
        if isinstance(rows, numbers.Integral) and not isinstance(rows, bool):
            return self._datum(int(rows))
        if isinstance(rows, (list, np.ndarray)):
            rows = as_numbers(rows, "rows")
        if not isinstance(rows, (slice, Tensor)):
            raise TypeError(
                f"index data by a number, a slice, or a list, array or tensor of indices or bools, got {rows!r}"
            )
        if isinstance(rows, Tensor):
            rows = self._checked(rows)
        if not len(self.images[rows]):
            raise ValueError(f"{rows!r} selects none of the {len(self)} data")
        parts: dict[str, Any] = {"images": self.images[rows]}
        if self.labels is not None:
            parts["labels"] = self.labels[rows]
        if self.factors is not None:
            presence, values, names = self.factors
            parts["factors"] = Factors(presence[rows], values[rows], names)
        return dataclasses.replace(self, **parts)

    def _datum(self, index: int) -> Tensor | tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no datum {index} of {len(self)}")
        index %= len(self)
        x = self.draw(slice(index, index + 1))[0]
        return x if self.labels is None else (x, self.labels[index])

    def _checked(self, rows: Tensor) -> Tensor:
        if rows.ndim != 1:
            raise ValueError(f"a tensor of indices must have one dimension, got shape {tuple(rows.shape)}")
        if rows.is_floating_point() and len(rows):
            raise TypeError(f"index data by whole numbers or bools, got {rows.dtype}")
        return rows if rows.dtype == torch.bool else rows.long()  # torch takes uint8 for bools

    def to(self, like: Tensor) -> Dataset:
        """Return the data on the device of the tensor `like`, images and factor values in its floating-point type."""
        labels = None if self.labels is None else self.labels.to(like.device)
        factors = self.factors
        if factors is not None:
            factors = Factors(factors.presence.to(like.device), factors.values.to(like), factors.names)
        return dataclasses.replace(self, images=self.images.to(like), labels=labels, factors=factors)

    def draw(self, indices: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        """Return these data as a model sees them, shape ``(B, ...)``; under dynamic binarisation, a fresh draw."""
        batch = self._selected(indices)
        return bernoulli(batch, generator) if self.binarize == "dynamic" else batch

    def _selected(self, indices: Tensor | slice) -> Tensor:
        if not isinstance(indices, Tensor) or indices.ndim != 1 or indices.dtype != torch.long:
            return self.images[indices]
        if not indices.device.type == self.images.device.type == "cpu":
            return self.images[indices]
        # On a CPU this takes a third of the time of indexing. It does not count from the end.
        return self.images.index_select(0, torch.where(indices < 0, indices + len(self), indices))

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


def as_dataset(data: Any) -> Dataset:
    """Return `data` itself, or a `Dataset` made of numbers of shape ``(N, ...)``.

    Args:
        data: a `Dataset`; an array (of any byte order, strides and type of real numbers), tensor, data frame or
            anything else with ``__array__``, such as those of pandas, xarray or h5py; or a list of rows.

    Raises:
        ValueError: no datum, data not of shape ``(N, ...)``, or anything else: sparse, masked or complex arrays,
            strings, dates, dicts, tuples, generators.

    Example:
        >>> import pandas as pd
        >>> from vsc_pyro.datasets import as_dataset
        >>> as_dataset(pd.DataFrame({"age": [31, 54], "smokes": [True, False], "dose": [0.5, 2.0]})).images.float()
        tensor([[31.0000,  1.0000,  0.5000],
                [54.0000,  0.0000,  2.0000]])
    """
    return data if isinstance(data, Dataset) else Dataset(_as_floats(data, "data"))


def _as_floats(data: Any, name: str) -> Tensor:
    images = as_numbers(data, name).detach()
    if images.is_floating_point():
        return images
    dtype = torch.get_default_dtype()
    # float32 rounds whole numbers beyond 2^24, such as times in seconds.
    if images.element_size() > 2 and images.numel():
        largest = torch.stack(images.aminmax()).double().abs().max()
        dtype = dtype if largest <= 2 / torch.finfo(dtype).eps else torch.float64
    return images.to(dtype)


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
