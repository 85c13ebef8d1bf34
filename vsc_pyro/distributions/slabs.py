"""Slabs by name: families of location and scale that a spike-and-slab, an encoder or a prior can be built on."""

from __future__ import annotations

from pyro.distributions import Cauchy, Laplace, Normal, TorchDistribution

from vsc_pyro._arguments import choice

SLABS: dict[str, type[TorchDistribution]] = {"normal": Normal, "laplace": Laplace, "cauchy": Cauchy}


def get_slab(slab: str) -> type[TorchDistribution]:
    """The family of that name, to be called with a location and a scale.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    return choice("slab", slab, SLABS)
