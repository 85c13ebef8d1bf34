"""Labels of data: whole numbers or strings, one for each datum, from arrays and lists of any kind."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vsc_pyro.datasets.numbers import as_array, as_numbers

_LARGEST = 2**63  # beyond an int64


def label_array(labels: Any, num_data: int) -> np.ndarray:
    """Return labels as an array of numbers or strings, shape ``(N,)``.

    Args:
        labels: a list or another sequence, a tensor, or anything with ``__array__``, such as a pandas Series or
            Categorical.
        num_data: number of data, N.

    Raises:
        ValueError: something else, another shape, missing labels, numbers and strings together, or numbers of more
            than 64 bits.
    """
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        array = (labels.float() if labels.dtype == torch.bfloat16 else labels).numpy()
    elif isinstance(labels, Sequence) and not isinstance(labels, (str, bytes)):
        array = np.empty(len(labels), dtype=object)
        array[:] = [_number(label) for label in labels]
    else:
        array = as_array(labels, "labels")
    if array.shape != (num_data,):
        raise ValueError(f"labels must have shape ({num_data},), one for each datum, got {array.shape}")
    if array.dtype != object:
        return array
    values = array.tolist()
    for kind in (str, numbers.Real):
        if all(isinstance(value, kind) or (kind is not str and isinstance(value, np.bool_)) for value in values):
            whole = all(isinstance(value, numbers.Integral) for value in values)
            # NumPy rounds whole numbers to floats if no type of 64 bits holds all of them.
            array = array if whole and np.array(values).dtype.kind == "f" else np.array(values)
            break
    if array.dtype == object:
        examples = {type(value).__name__: value for value in values}
        raise ValueError(
            "labels must be all numbers or all strings, to be kept in a file, with none missing, numbers of at most 64 "
            f"bits, got such as {', '.join(map(repr, examples.values()))}; leave data without a label out"
        )
    return array


def as_labels(labels: Any, num_data: int, class_names: Any = None) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return labels as a tensor of whole numbers, shape ``(N,)``, and the names of classes.

    Args:
        labels: numbers, which remain on the device of a tensor; or strings, which become their places in `class_names`.
        num_data: number of data, N.
        class_names: names of the classes 0, 1, ...; None for the sorted strings, and for no names of numbers.

    Raises:
        ValueError: as `label_array`; labels that are neither whole numbers nor strings, or not of the named classes;
            names that are no strings, or not different.
    """
    names = None if class_names is None else _names(class_names)
    array = label_array(labels, num_data)
    if array.dtype.kind in "US":
        return _numbered(array.astype(str), names)
    numbers = _whole_numbers(labels, array)
    if names is not None and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(names):
        raise ValueError(
            f"labels must be numbers of the {len(names)} class_names from 0 on, got {int(numbers.min())} to "
            f"{int(numbers.max())}"
        )
    return numbers, names


def _names(class_names: Any) -> tuple[str, ...]:
    names = () if isinstance(class_names, str) else tuple(class_names)
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"class_names must be different strings, one for each class, got {class_names!r}")
    return tuple(map(str, names))


def _numbered(labels: np.ndarray, names: tuple[str, ...] | None) -> tuple[Tensor, tuple[str, ...]]:
    found, places = np.unique(labels, return_inverse=True)
    names = tuple(found.tolist()) if names is None else names
    if unknown := sorted(set(found.tolist()) - set(names)):
        raise ValueError(f"labels must be among class_names, {', '.join(map(repr, names))}, got {unknown[0]!r}")
    return torch.tensor([names.index(name) for name in found.tolist()])[torch.from_numpy(places)], names


def _whole_numbers(labels: Any, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"labels must be whole numbers or strings, got {array.dtype.name} such as {array[0].item()!r}; pass the "
            "names of the classes"
        )
    if array.dtype.kind == "f":
        whole = np.isfinite(array) & (array == np.round(array))
        if not whole.all():
            raise ValueError(f"labels must be whole numbers, got {array[~whole][0]}; pass classes from 0 on")
    if array.dtype.kind in "uf" and (array >= _LARGEST).any():
        raise ValueError(f"labels must be whole numbers below 2^63, got {array.max()}; pass classes from 0 on")
    is_kept = array.dtype.kind in "bi" or array.dtype == np.uint8
    if isinstance(labels, Tensor):
        return labels if is_kept else labels.long()
    return as_numbers(array if is_kept else array.astype(np.int64), "labels")


def _number(label: Any) -> Any:
    """Return a tensor or array of one number as that number; anything else unchanged."""
    return label.item() if isinstance(label, (Tensor, np.ndarray)) and label.ndim == 0 else label
