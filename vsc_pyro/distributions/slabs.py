"""Slabs by name: location-scale families for spike-and-slabs, encoders and priors."""

from __future__ import annotations

# Pyro creates these classes when it is imported, so pyright does not see them.
from pyro.distributions import Cauchy, Laplace, Normal, TorchDistribution  # pyright: ignore[reportAttributeAccessIssue]

from vsc_pyro._arguments import choice

SLABS: dict[str, type[TorchDistribution]] = {"normal": Normal, "laplace": Laplace, "cauchy": Cauchy}


def get_slab(slab: str) -> type[TorchDistribution]:
    """Return the family with the name `slab`; call it with a location and a scale.

    Raises:
        ValueError: an unknown name; the message lists the known ones.

    Example:
        >>> from vsc_pyro.distributions import get_slab
        >>> get_slab("laplace")(0.0, 1.0)
        Laplace(loc: 0.0, scale: 1.0)
    """
    return choice("slab", slab, SLABS)
