r"""Operations of a compiled graph that PyTorch runs slowly on a CPU, rewritten for inductor.

* **Large float32 products**, on x86 processors that are not Intel's. PyTorch takes MKL, which keeps its AVX-512 kernels
  for Intel's own. oneDNN, a part of PyTorch too, takes what the processor can do.
* **log1p and expm1**, the core of softplus, cross-entropy and ELU, whose vectorised forms take over ten times as long
  as those of log and exp. With :math:`u` the rounded :math:`1 + x`, and the rounded :math:`e^x`,

  .. math:: \log(1 + x) = x\, \frac{\log u}{u - 1}, \qquad e^x - 1 = x\, \frac{u - 1}{\log u},

  where the error of u cancels, to a few units in the last place (W. Kahan, in D. Goldberg, 1991).

References
    D. Goldberg (1991), What every computer scientist should know about floating-point arithmetic.
"""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph

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


def log1p(x: Tensor) -> Tensor:
    """Return :math:`\\log(1 + x)`, see the module's docstring."""
    rounded = 1 + x
    log, rest = rounded.log(), rounded - 1
    return torch.where(rest == 0, x, torch.where(rounded == x, log, log * (x / rest)))


def expm1(x: Tensor) -> Tensor:
    """Return :math:`e^x - 1`, see the module's docstring."""
    rounded = x.exp()
    rest = rounded - 1
    plain = (rest == -1) | (rounded == torch.inf)
    return torch.where(rounded == 1, x, torch.where(plain, rest, rest * (x / rounded.log())))


@functools.cache
def rewriting() -> Any:
    """Return a pass over inductor's graph of primitive operations. The processor decides alone, so that runs repeat."""
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class Rewriting(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            _patterns().apply(graph)

        def uuid(self) -> Any:  # what compiled code on disk depends on
            return "vsc_pyro", Path(__file__).read_bytes(), prefers_onednn()

    return Rewriting()


@functools.cache
def _patterns() -> Any:
    from torch._inductor.pattern_matcher import Arg, CallFunction, PatternMatcherPass, register_graph_pattern

    patterns: Any = PatternMatcherPass()
    aten = torch.ops.aten

    def replace(operation: Any, num: int, extra_check: Any, replacement: Any) -> None:
        pattern = CallFunction(operation, *(Arg() for _ in range(num)))  # the same Arg twice is the same argument
        register_graph_pattern(pattern, extra_check=extra_check, pass_dict=patterns)(
            lambda match, *args: match.replace_by_example(replacement, list(args))
        )

    replace(aten.log1p.default, 1, _is_slow, log1p)
    replace(aten.expm1.default, 1, _is_slow, expm1)
    if prefers_onednn():
        product = torch.ops.vsc_pyro.product
        replace(aten.mm.default, 2, _is_large, lambda a, b: product(a, b, None))
        replace(aten.addmm.default, 3, _is_large, lambda bias, a, b: product(a, b, bias))
    return patterns


def _values(match: Any) -> list[Tensor]:
    return [argument.meta["val"] for argument in match.args]


def _is_slow(match: Any) -> bool:
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in _values(match))


def _is_large(match: Any) -> bool:
    *bias, a, b = _values(match)
    if match.output_node().kwargs or any(x.ndim != 1 for x in bias):  # addmm may weigh its parts
        return False
    return _is_slow(match) and 2 * a.shape[0] * b.numel() >= _LEAST_FLOPS


@functools.cache
def prefers_onednn() -> bool:
    """Return True on an x86 processor with AVX-512 that is not Intel's, if PyTorch has both libraries."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not has_both or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        found = re.search(r"vendor_id\s*:\s*(\w+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return "Intel" not in (found[1] if found else platform.processor())
