"""Running a captured graph, and comparing results up to rounding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Attempts to find a compiled graph right: rounding may flip a spike whose noise meets its threshold.
COMPARISONS = 2
# A compiled graph sums in another order.
_TOLERANCE = 1e-3
# A recorded graph does the same operations in the same order, except for some on a GPU.
_SAME = 1e-5


def alike(expected: list[Tensor], got: list[Tensor], tolerance: float = _TOLERANCE) -> bool:
    """Return True if two lists of results, such as a loss and its gradients, are equal but for rounding."""
    sizes = [float(value.abs().nan_to_num(0.0, 0.0).max()) if value.numel() else 0.0 for value in expected]
    # A gradient that is zero in truth, such as that of a bias before a batch norm, is all rounding.
    rounding = _TOLERANCE * max(sizes[1:], default=0.0)
    return all(
        torch.allclose(one, other, rtol=tolerance, atol=tolerance * max(size, rounding), equal_nan=True)
        for one, other, size in zip(expected, got, sizes, strict=True)
    )


def tolerance_of(graph: torch.fx.GraphModule) -> float:
    """Return the tolerance for `alike`: the precision of the coarsest type that the graph computes in.

    A compiled step in bfloat16 rounds in other places than an eager one.
    """
    casts = (node.kwargs.get("dtype") for node in graph.graph.nodes)
    found = (torch.finfo(dtype).eps for dtype in casts if dtype in (torch.bfloat16, torch.float16))
    return max(_TOLERANCE, *found, 0.0)


def same(expected: list[Tensor], got: list[Tensor], rounding: float = 0.0) -> bool:
    """Return True if the same operations have returned the same, each result compared relative to its own size.

    Args:
        expected, got: a loss and its gradients.
        rounding: difference that any gradient may have, as a share of the largest.
    """
    sizes = [float(value.abs().nan_to_num(0.0, 0.0, 0.0).max()) if value.numel() else 0.0 for value in expected]
    floor = rounding * max(sizes[1:], default=0.0)
    return all(
        torch.allclose(one, other, rtol=0.0, atol=max(_SAME * size, floor), equal_nan=True)
        for one, other, size in zip(expected, got, sizes, strict=True)
    )


def undisturbed(graph: Callable[..., Any], inputs: list[Tensor]) -> Any:
    """Run a graph without gradients, and without autocast, whose casts are recorded in the graph."""
    with torch.no_grad(), torch._C._DisableAutocast():
        return graph(*inputs)


def forked(tensors: Iterable[Tensor]) -> contextlib.AbstractContextManager:
    """Restore the random state of the CPU and of the tensors' devices afterwards."""
    return torch.random.fork_rng({tensor.device for tensor in tensors if tensor.device.type == "cuda"})
