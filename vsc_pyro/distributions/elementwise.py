"""Elementwise functions that read and write few arrays of the size of a minibatch of codes.

Such arrays, not arithmetic, are most of the time of an elementwise function and of its gradient.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


def unexpanded(tensor: Tensor) -> Tensor:
    """Return `tensor` without the copies that `expand` has made: such dimensions have the size 1."""
    return cast("Tensor", _Once.apply(tensor)) if any(map(_is_copied, tensor.shape, tensor.stride())) else tensor


def _is_copied(size: int, stride: int) -> bool:
    return stride == 0 and size > 1


class _Once(torch.autograd.Function):
    """Keep one of equal copies. Each takes an equal share of the gradient, which needs no array of all copies."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor) -> Tensor:
        for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
            if _is_copied(size, stride):
                tensor = tensor.narrow(dim, 0, 1)
        return tensor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient * (gradient.numel() / math.prod(ctx.shape))).expand(ctx.shape)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return ``(a - b)**2`` with one array, and another one in the gradient of each argument."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return mse_loss(*torch.broadcast_tensors(a.to(dtype), b.to(dtype)), reduction="none")
