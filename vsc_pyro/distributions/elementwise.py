"""Elementwise functions that read and write few arrays of the size of a minibatch of codes.

Such arrays, not arithmetic, are most of the time of an elementwise function and of its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


def unexpanded(tensor: Tensor) -> Tensor:
    """Return `tensor` without the copies that `expand` has made: such dimensions have the size 1.

    A tensor that requires a gradient is returned whole, since each of its copies has a gradient of its own.
    """
    if tensor.requires_grad:
        return tensor
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return ``(a - b)**2`` with one array, and another one in the gradient of each argument."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return mse_loss(*torch.broadcast_tensors(a.to(dtype), b.to(dtype)), reduction="none")
