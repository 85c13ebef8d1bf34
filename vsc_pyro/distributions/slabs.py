"""Slabs by name, each made of a location and a scale; the table of `vsc_pyro.SpikeSlabPrior` says what these are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

# Pyro creates these classes when it is imported, so pyright does not see them.
from pyro.distributions import (
    Cauchy,  # pyright: ignore[reportAttributeAccessIssue]
    Exponential,  # pyright: ignore[reportAttributeAccessIssue]
    Gamma,
    HalfNormal,  # pyright: ignore[reportAttributeAccessIssue]
    Laplace,  # pyright: ignore[reportAttributeAccessIssue]
    LogNormal,
    Normal,
    TorchDistribution,
)
from torch import Tensor

from vsc_pyro._arguments import choice
from vsc_pyro.distributions.truncated_normal import TruncatedNormal

SMALLEST_SCALE = 1e-4
"""The smallest scale of a slab."""


def held(value: Tensor, low: float, high: float) -> Tensor:
    """Return ``value.clamp(low, high)`` with the gradient of `value`, which can therefore return into its range."""
    return value + (value.clamp(low, high) - value).detach()


@dataclasses.dataclass(frozen=True)
class PositiveSlab:
    """A family of positive slabs; call it with a location and a scale.

    Attributes:
        build: returns the distribution.
        has_loc: False for a family without location.
        smallest, largest: range of the scale.
    """

    build: Callable[[Tensor, Tensor], TorchDistribution]
    has_loc: bool = True
    smallest: float = SMALLEST_SCALE
    largest: float = math.inf

    def __call__(self, loc: Tensor, scale: Tensor) -> TorchDistribution:
        return self.build(loc, held(scale, self.smallest, self.largest))


def _gamma(loc: Tensor, scale: Tensor) -> Gamma:
    concentration = scale**-2
    return Gamma(concentration, concentration * (-loc).exp())


def _half_normal(loc: Tensor, scale: Tensor) -> HalfNormal:
    return HalfNormal(scale)


def _exponential(loc: Tensor, scale: Tensor) -> Exponential:
    return Exponential(1 / scale)


SLABS: dict[str, type[TorchDistribution]] = {"normal": Normal, "laplace": Laplace, "cauchy": Cauchy}
# A large scale overflows the moments of a log-normal slab. Sharper gamma slabs lose the precision of float32; draws of
# wider ones underflow.
POSITIVE_SLABS: dict[str, PositiveSlab] = {
    "truncated-normal": PositiveSlab(TruncatedNormal),
    "log-normal": PositiveSlab(LogNormal, largest=3.0),
    "gamma": PositiveSlab(_gamma, smallest=0.02, largest=3.0),
    "half-normal": PositiveSlab(_half_normal, has_loc=False),
    "exponential": PositiveSlab(_exponential, has_loc=False),
}


def get_slab(slab: str) -> Callable[..., TorchDistribution]:
    """Return the family with the name `slab`; call it with a location and a scale.

    Raises:
        ValueError: an unknown name; the message lists the known ones.

    Example:
        >>> from vsc_pyro.distributions import get_slab
        >>> get_slab("laplace")(0.0, 1.0)
        Laplace(loc: 0.0, scale: 1.0)
    """
    return choice("slab", slab, {**SLABS, **POSITIVE_SLABS})
