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
        raise ValueError(
            f"labels must be all numbers or all strings, to be kept in a file, and numbers of at most 64 bits, got "
            f"{values}"
        )
    return array


def as_labels(labels: Any, num_data: int) -> Tensor:
    """Return labels as a tensor of whole numbers, shape ``(N,)``, on the device of a tensor; a tensor of them itself.

    Raises:
        ValueError: as `label_array`, or labels that are not whole numbers.
    """
    array = label_array(labels, num_data)
    if array.dtype.kind not in "biuf":
        kind = "strings" if array.dtype.kind in "US" else array.dtype.name
        raise ValueError(
            f"labels must be whole numbers, got {kind} such as {array[0].item()!r}; pass "
            "numpy.unique(labels, return_inverse=True)[1], and the names to to_arviz(labels=)"
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
