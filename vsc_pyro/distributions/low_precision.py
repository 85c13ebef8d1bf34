"""Compute divergences of distributions with 16-bit parameters in float32.

In bfloat16, the rounding errors of log-probabilities are larger than the divergences, which are their differences. In
float16, the square of a small scale underflows. Draws and densities keep the dtype of the parameters.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from vsc_pyro.distributions.families import changed
from vsc_pyro.distributions.spikes import to_float32


def kl_in_float32(kl: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Decorate a function for `register_kl` so that it gets distributions with float32 or float64 parameters."""

    @functools.wraps(kl)
    def precise(p: Distribution, q: Distribution) -> Tensor:
        if is_coarse(p) or is_coarse(q):
            p, q = in_float32(p), in_float32(q)
        return kl(p, q)

    return precise


def in_float32(distribution: Distribution) -> Distribution:
    """Return the distribution with float32 or float64 parameters, or itself if it cannot be rebuilt from them."""
    with contextlib.suppress(NotImplementedError):
        return changed(distribution, lambda name, parameter, constraint: to_float32(parameter))
    return distribution


def is_coarse(distribution: Distribution) -> bool:
    """Return True if a parameter has 16 bits."""
    parts = (getattr(distribution, name, None) for name in ("base_dist", "slab"))
    return any(
        isinstance(parameter, Tensor) and parameter.is_floating_point() and parameter.dtype.itemsize < 4
        for parameter in map(distribution.__dict__.get, distribution.arg_constraints)
    ) or any(is_coarse(part) for part in parts if part is not None)
