r"""Operations of a compiled graph that PyTorch runs slowly on a CPU, rewritten for inductor.

* **Large float32 products**, on x86 processors with AVX-512 that are not Intel's. PyTorch takes MKL, which is slower
  there than oneDNN, another part of PyTorch.
* **log1p and expm1**, the core of softplus, cross-entropy and ELU, which take much longer than log and exp. With
  :math:`u` the rounded :math:`1 + x`, and the rounded :math:`e^x`,

  .. math:: \log(1 + x) = x\, \frac{\log u}{u - 1}, \qquad e^x - 1 = x\, \frac{u - 1}{\log u},

  where the error of u cancels, to a few units in the last place (W. Kahan, in D. Goldberg, 1991).

References
    D. Goldberg (1991), What every computer scientist should know about floating-point arithmetic.
"""

from __future__ import annotations

import functools
import math
import platform
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph

# Below it the call from Python takes longer than the product saves.
_LEAST_FLOPS = 4e6


def _by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``a @ b + bias``."""
    bias = None if bias is None else bias.contiguous()  # its strides are not looked at
    return torch.ops.mkldnn._linear_pointwise(_plain(a), _plain(b).t(), bias, "none", [], "")


def _plain(x: Tensor) -> Tensor:
    """Return a matrix whose rows or columns are contiguous and do not overlap, a copy if need be."""
    (rows, columns), (row, column) = x.shape, x.stride()
    return x if (column == 1 and row >= columns) or (row == 1 and column >= rows) else x.contiguous()


def _empty(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


if not hasattr(torch.ops.vsc_pyro, "product"):  # the package may be imported anew in the same process
    torch.library.define("vsc_pyro::product", "(Tensor a, Tensor b, Tensor? bias) -> Tensor")
    torch.library.impl("vsc_pyro::product", "cpu", _by_onednn)
    torch.library.impl("vsc_pyro::product", "meta", _empty)
    for _name in ("vsc_pyro::log1p", "vsc_pyro::expm1"):
        torch.library.define(_name, "(Tensor x) -> Tensor")
        torch.library.impl(_name, "meta", torch.empty_like)


def _log1p(x: Any, ops: Any) -> Any:
    """Write log(1 + x), see the module's docstring, in the primitive operations `ops`."""
    zero, one = (ops.constant(value, torch.float32) for value in (0.0, 1.0))
    rounded = ops.add(x, one)
    log, rest = ops.log(rounded), ops.sub(rounded, one)
    # Where 1 + x is x, which may be infinite, the quotient is 1.
    large = ops.where(ops.eq(rounded, x), log, ops.mul(log, ops.truediv(x, rest)))
    return ops.where(ops.eq(rest, zero), x, large)


def _expm1(x: Any, ops: Any) -> Any:
    """Write exp(x) - 1, see the module's docstring, in the primitive operations `ops`."""
    one, least, most = (ops.constant(value, torch.float32) for value in (1.0, -1.0, math.inf))
    rounded = ops.exp(x)
    rest = ops.sub(rounded, one)
    plain = ops.or_(ops.eq(rest, least), ops.eq(rounded, most))
    large = ops.where(plain, rest, ops.mul(rest, ops.truediv(x, ops.log(rounded))))
    return ops.where(ops.eq(rounded, one), x, large)


@functools.cache
def rewriting() -> Any:
    """Return a pass over inductor's graph of primitive operations. The processor decides alone, so that runs repeat.

    Returns:
        None before torch 2.6, whose inductor keeps no graph with a pass on disk.
    """
    try:
        from torch._inductor.custom_graph_pass import CustomGraphPass
    except ImportError:
        return None

    class Rewriting(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            _patterns().apply(graph)

        def uuid(self) -> Any:  # what compiled code on disk depends on
            return "vsc_pyro", Path(__file__).read_bytes(), prefers_onednn()

    return Rewriting()


@functools.cache
def _patterns() -> Any:
    from torch._inductor.lowering import make_pointwise, register_lowering
    from torch._inductor.pattern_matcher import Arg, CallFunction, PatternMatcherPass, register_graph_pattern
    from torch._inductor.virtualized import ops

    patterns: Any = PatternMatcherPass()
    aten = torch.ops.aten

    def replace(operation: Any, num: int, extra_check: Any, replacement: Any) -> None:
        pattern = CallFunction(operation, *(Arg() for _ in range(num)))  # the same Arg twice is the same argument
        register_graph_pattern(pattern, extra_check=extra_check, pass_dict=patterns)(
            lambda match, *args: match.replace_by_example(replacement, list(args))
        )

    # As one operation: inductor would store exponentials that several operations read.
    own = torch.ops.vsc_pyro
    for operation, ours, function in ((aten.log1p, own.log1p, _log1p), (aten.expm1, own.expm1, _expm1)):
        register_lowering(ours.default)(make_pointwise(functools.partial(function, ops=ops)))
        replace(operation.default, 1, _is_slow, ours)
    if prefers_onednn():
        replace(aten.mm.default, 2, _is_large, lambda a, b: own.product(a, b, None))
        replace(aten.addmm.default, 3, _is_large, lambda bias, a, b: own.product(a, b, bias))
    return patterns


def _values(match: Any) -> list[Tensor]:
    return [argument.meta["val"] for argument in match.args]


def _is_slow(match: Any) -> bool:
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in _values(match))


def _is_large(match: Any) -> bool:
    *bias, a, b = _values(match)
    # addmm may weigh its parts, and repeat a bias.
    if match.output_node().kwargs or any(x.shape != b.shape[1:] for x in bias):
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
