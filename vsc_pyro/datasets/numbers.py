"""Real numbers of arrays, tensors, data frames and lists."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

KINDS = "an array, tensor or data frame, anything else with __array__, or a list of rows, of shape (N, ...)"
# Types with which torch computes. It stores others, such as uint16, but cannot even compare their values.
_TYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


def as_numbers(data: Any, name: str = "data") -> Tensor:
    """Return numbers as a tensor of a type with which torch computes, without a copy where it can be.

    Arrays may have any byte order and strides and may be read-only. Numbers of other types, such as uint16, become
    floating-point numbers.

    Args:
        data: a dense tensor; an array, data frame or anything else with ``__array__``; or a list of numbers or rows.
        name: of the argument, in messages.

    Raises:
        ValueError: another kind of data: sparse, missing (under a mask), complex numbers, strings, dates or objects.
    """
    if isinstance(data, list):
        x = _of_list(data, name)
    elif isinstance(data, Tensor):
        x = data
        if x.layout != torch.strided or x.is_nested:
            kind = "nested tensor" if x.is_nested else f"tensor of layout {x.layout}"
            raise ValueError(f"{name} must be dense, got a {kind}; pass a padded one or x.to_dense()")
        if x.is_meta:
            raise ValueError(f"{name} must hold numbers, got a tensor on the device meta, which has none")
    else:
        x = _of_array(as_array(data, name), data, name)
    if x.is_complex() or x.is_quantized:
        raise _other(name, f"a tensor of {x.dtype}")
    return x if x.dtype in _TYPES else x.to(torch.get_default_dtype())


def as_array(data: Any, name: str) -> np.ndarray:
    """Return anything with ``__array__`` as an array.

    Raises:
        ValueError: something else, a sparse matrix, an array that cannot be read, or one with masked values.
    """
    kind = type(data).__name__
    if hasattr(data, "toarray"):
        raise ValueError(f"{name} must be dense, got a {kind}, which is sparse; pass {name}.toarray()")
    if not hasattr(data, "__array__"):
        is_stream = isinstance(data, Iterable) and not isinstance(data, (str, bytes, Mapping, tuple, Set))
        remedy = "; of a stream of batches, pass torch.cat(list(itertools.islice(stream, 20)))" if is_stream else ""
        raise ValueError(f"{name} must be {KINDS}; got a {kind}{remedy}")
    if np.ma.is_masked(data):
        raise ValueError(
            f"{name} holds {np.ma.count_masked(data)} values under a mask, which are missing; remove these rows, or "
            "fill the values by .filled(...), by .filled(nan) for a model built with VAE(..., missing=True)"
        )
    try:
        return np.asarray(data)
    except Exception as error:  # a class of anyone's may raise anything
        raise ValueError(f"{name} must be {KINDS}; got a {kind} that is none ({error})") from error


def _of_array(array: np.ndarray, data: Any, name: str) -> Tensor:
    if array.dtype == object and not isinstance(data, np.ndarray):
        array = _of_objects(array, data, name)
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise _other(name, f"an array of {dtype}")
    array = np.asarray(array, dtype)
    array = array.copy() if min(array.strides, default=0) < 0 else array  # torch takes none that run backwards
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ")  # no data are written to
        return torch.as_tensor(array)


def _of_objects(array: np.ndarray, data: Any, name: str) -> np.ndarray:
    """Return the numbers of a frame whose columns differ in type, such as bool and float."""
    strange = next((value for value in array.flat if not isinstance(value, (numbers.Real, np.bool_))), None)
    if strange is not None or None in array:
        remedy = " (astype(float) makes NaN of it)" if repr(strange) in ("None", "<NA>") else ""
        raise _other(name, f"a {type(data).__name__} that holds {strange!r}{remedy}")
    return array.astype(float)


def _of_list(data: list, name: str) -> Tensor:
    try:
        if not any(hasattr(row, "__array__") or hasattr(row, "toarray") for row in data):
            return torch.as_tensor(data)
        rows = [as_numbers(row, name) for row in data]
        if all(row.ndim < 2 for row in rows):
            return torch.stack(rows)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name} must be {KINDS}; got a list that is none ({error})") from error
    raise ValueError(
        f"{name} must be {KINDS}; got a list of arrays of more than one dimension; pass torch.stack(...) of data, or "
        "torch.cat(...) of batches"
    )


def _other(name: str, kind: str) -> ValueError:
    return ValueError(f"{name} must be real numbers, got {kind}; pass floats of at most 64 bits, or whole numbers")
