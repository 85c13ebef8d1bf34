"""Large float32 products of a compiled graph by oneDNN, on x86 processors that are not Intel's.

PyTorch multiplies float32 matrices on a CPU by MKL, which keeps its AVX-512 kernels for Intel's processors. oneDNN, a
part of PyTorch too, takes what the processor can do.
"""

from __future__ import annotations

import copy
import functools
import platform
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

# Below it the call from Python takes longer than the product saves.
_LEAST_FLOPS = 4e6

_LIBRARY = torch.library.Library("vsc_pyro", "FRAGMENT")
_LIBRARY.define("product(Tensor a, Tensor b, Tensor? bias) -> Tensor")


def _by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``a @ b + bias``."""
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")


def _empty(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


_LIBRARY.impl("product", _by_onednn, "CPU")
_LIBRARY.impl("product", _empty, "Meta")


def with_fast_products(graph: GraphModule) -> GraphModule:
    """Return a recorded graph, or, where oneDNN is faster, a copy with its large products by oneDNN.

    The processor alone decides, so that a run repeats itself. The results differ by rounding.
    """
    if not _is_faster():
        return graph
    graph = copy.deepcopy(graph)
    for node in list(graph.graph.nodes):
        if _is_large_product(node):
            *bias, a, b = node.args
            with graph.graph.inserting_before(node):
                product = graph.graph.call_function(
                    torch.ops.vsc_pyro.product.default, (a, b, bias[0] if bias else None)
                )
            product.meta = node.meta
            node.replace_all_uses_with(product)
            graph.graph.erase_node(node)
    graph.recompile()
    return graph


def _is_large_product(node: Node) -> bool:
    if node.target not in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default) or node.kwargs:
        return False
    *bias, a, b = (argument.meta["val"] for argument in node.args)
    is_plain = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (*bias, a, b))
    return is_plain and all(t.ndim == 1 for t in bias) and 2 * a.shape[0] * b.numel() >= _LEAST_FLOPS


@functools.cache
def _is_faster() -> bool:
    """Return True on an x86 processor with AVX-512 that is not Intel's, if PyTorch has both libraries."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not has_both or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        found = re.search(r"vendor_id\s*:\s*(\w+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return "Intel" not in (found[1] if found else platform.processor())
