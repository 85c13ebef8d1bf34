"""Elementwise functions that read and write few arrays of the size of a minibatch of codes.

Such arrays, not arithmetic, are most of the time of an elementwise function and of its gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


def unexpanded(tensor: Tensor) -> Tensor:
    """Return the tensor that `expand` has made `tensor` of, or a view without repetitions."""
    once = tensor
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            once = once.narrow(dim, 0, 1)
    base = tensor._base
    # The gradient of a narrowed view is a tensor of zeros of the expanded shape.
    if (
        base is None
        or base.requires_grad != tensor.requires_grad
        or not (base.is_contiguous() and once.is_contiguous())
    ):
        return once
    is_all = base.numel() == once.numel() and base.shape == once.shape[once.dim() - base.dim() :]
    return base if is_all else once


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return ``(a - b)**2`` with one array, and another one in the gradient of each argument."""
    return mse_loss(*torch.broadcast_tensors(a, b), reduction="none")
