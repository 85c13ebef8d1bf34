"""Divergences of distributions with parameters of 16 bits, computed in float32.

In bfloat16, logarithms of probabilities differ by more than the divergences that are their differences; in float16 the
square of a small scale is zero. Draws and densities are left in the type that they were asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from vsc_pyro.distributions.spikes import to_float32


def kl_in_float32(kl: Callable) -> Callable:
    """Decorate a function of two distributions for `register_kl`: parameters of 16 bits are made float32 first."""

    @functools.wraps(kl)
    def precise(p: Distribution, q: Distribution) -> Tensor:
        if is_coarse(p) or is_coarse(q):
            return kl_divergence(in_float32(p), in_float32(q))
        return kl(p, q)

    return precise


@functools.singledispatch
def in_float32(distribution: Distribution) -> Distribution:
    """The same distribution with parameters of float32 or better; itself if its parameters are not all known."""
    parameters = {name: distribution.__dict__.get(name) for name in distribution.arg_constraints}
    if not parameters or not all(isinstance(parameter, Tensor) for parameter in parameters.values()):
        return distribution
    return type(distribution)(**{k: to_float32(v) for k, v in parameters.items()}, validate_args=False)


@in_float32.register
def _independent(distribution: torch.distributions.Independent) -> Distribution:
    return in_float32(distribution.base_dist).to_event(distribution.reinterpreted_batch_ndims)


def is_coarse(distribution: Distribution) -> bool:
    """Whether a parameter has 16 bits."""
    parts = (getattr(distribution, name, None) for name in ("base_dist", "slab"))
    return any(
        isinstance(parameter, Tensor) and parameter.is_floating_point() and parameter.dtype.itemsize < 4
        for parameter in map(distribution.__dict__.get, distribution.arg_constraints)
    ) or any(is_coarse(part) for part in parts if part is not None)
