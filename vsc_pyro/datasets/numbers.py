"""Real numbers of arrays and tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

# Types with which torch computes. It stores others, such as uint16, but cannot even compare their values.
_TYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


def as_numbers(data: Any) -> Tensor:
    """Return an array or tensor as a tensor of a type with which torch computes, without a copy where it is one.

    Arrays may have any byte order and strides. Numbers of other types, such as uint16, become floating-point numbers.

    Raises:
        ValueError: complex numbers, strings, dates or objects.
    """
    if isinstance(data, np.ndarray):
        dtype = data.dtype.newbyteorder("=")
        if dtype.kind not in "biuf" or dtype.itemsize > 8:
            raise _other(f"an array of {dtype}")
        data = np.asarray(data, dtype)
        data = data.copy() if min(data.strides, default=0) < 0 else data  # torch takes none that run backwards
    x = torch.as_tensor(data)
    if x.is_complex() or x.is_quantized:
        raise _other(f"a tensor of {x.dtype}")
    return x if x.dtype in _TYPES else x.to(torch.get_default_dtype())


def _other(kind: str) -> ValueError:
    return ValueError(f"data must be real numbers, got {kind}; pass floats of at most 64 bits, or whole numbers")
