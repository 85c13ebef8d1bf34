"""How a captured graph is run, and held against what it was captured from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Of what is compiled: a spike whose noise meets its threshold to the last bit may fall on either side of it there.
COMPARISONS = 2
# What is compiled sums in another order.
_TOLERANCE = 1e-3
# A recorded graph does the same operations in the same order, but for some of a GPU's.
_SAME = 1e-5


def alike(expected: list[Tensor], got: list[Tensor], tolerance: float = _TOLERANCE) -> bool:
    """Whether two ways to compute a loss and its gradients, or other values, give the same, but for rounding."""
    sizes = [float(value.abs().nan_to_num(0.0, 0.0).max()) if value.numel() else 0.0 for value in expected]
    # A gradient that is zero in truth, as of a bias before a batch norm, is all rounding.
    rounding = _TOLERANCE * max(sizes[1:], default=0.0)
    return all(
        torch.allclose(one, other, rtol=tolerance, atol=tolerance * max(size, rounding), equal_nan=True)
        for one, other, size in zip(expected, got, sizes, strict=True)
    )


def tolerance_of(graph: torch.fx.GraphModule) -> float:
    """The tolerance for `alike`, relative to the largest value: the precision of the coarsest type it computes in.

    Compiled, a step in bfloat16 rounds in other places: gradients of one of 784-400-50 differ by up to .0033 of the
    largest on an H200, where those in float32 differ by 5e-7.
    """
    casts = (node.kwargs.get("dtype") for node in graph.graph.nodes)
    found = (torch.finfo(dtype).eps for dtype in casts if dtype in (torch.bfloat16, torch.float16))
    return max(_TOLERANCE, *found, 0.0)


def same(expected: list[Tensor], got: list[Tensor], rounding: float = 0.0) -> bool:
    """Whether the same operations have given the same, each value held against its own size, however small that is.

    Args:
        expected, got: a loss and its gradients.
        rounding: of the largest gradient, what any may differ by.
    """
    sizes = [float(value.abs().nan_to_num(0.0, 0.0, 0.0).max()) if value.numel() else 0.0 for value in expected]
    floor = rounding * max(sizes[1:], default=0.0)
    return all(
        torch.allclose(one, other, rtol=0.0, atol=max(_SAME * size, floor), equal_nan=True)
        for one, other, size in zip(expected, got, sizes, strict=True)
    )


def undisturbed(graph: Callable[..., Any], inputs: list[Tensor]) -> Any:
    """What a graph puts out, without gradients; what autocast does has been recorded."""
    with torch.no_grad(), torch._C._DisableAutocast():
        return graph(*inputs)


def forked(tensors: Iterable[Tensor]) -> contextlib.AbstractContextManager:
    """Random numbers within do not count without, of the CPU and of the tensors' devices."""
    return torch.random.fork_rng({tensor.device for tensor in tensors if tensor.device.type == "cuda"})
