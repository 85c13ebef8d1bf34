"""`is_atom_free`: detect atoms, single values of positive probability, even those that a class does not declare."""

from __future__ import annotations

import contextlib
import functools

import torch
from pyro.distributions import (
    Delta,
    Empirical,
    RelaxedBernoulliStraightThrough,
    RelaxedOneHotCategoricalStraightThrough,
    ZeroInflatedDistribution,
)
from torch.distributions import AbsTransform, ComposeTransform, Distribution, SoftmaxTransform, Transform

_PARTS = ("base_dist", "component_distribution", "component0", "component1", "slab")
_LIBRARIES = ("torch.", "pyro.", "vsc_pyro.")
_PROBES = 300  # a continuous float32 draw repeats a value twice with a probability below 1e-7
_found_atom_free: dict[tuple, bool] = {}


@functools.singledispatch
def is_atom_free(distribution: Distribution) -> bool:
    """Return True if no single value has positive probability, as far as type, parts and a few draws tell.

    A class from outside torch, Pyro and this library is sampled once: if draws repeat a value, as straight-through or
    clamped draws do, it has an atom. The random state is restored.

    Example:
        >>> import pyro.distributions as dist
        >>> from vsc_pyro.distributions import SpikeSlab, is_atom_free
        >>> slab = dist.Normal(0.0, 1.0)
        >>> is_atom_free(slab), is_atom_free(SpikeSlab(slab, probs=0.5))
        (True, False)
    """
    parts = parts_of(distribution)
    if not all(map(is_atom_free, parts)) or not (parts or is_continuous(distribution)):
        return False
    transforms = getattr(distribution, "transforms", ())
    if not all(map(_is_without_plateaus, transforms)):
        return False
    drawn_by = getattr(type(distribution), "rsample" if distribution.has_rsample else "sample")
    if all(_is_from_a_library(maker) for maker in (drawn_by, *map(type, transforms))):
        return True
    key = structure(distribution)
    if key not in _found_atom_free:
        _found_atom_free[key] = not _repeats_draws(distribution)
    return _found_atom_free[key]


@is_atom_free.register(Delta)
@is_atom_free.register(Empirical)
@is_atom_free.register(RelaxedBernoulliStraightThrough)
@is_atom_free.register(RelaxedOneHotCategoricalStraightThrough)
@is_atom_free.register(ZeroInflatedDistribution)
def _has_atoms(distribution: Distribution) -> bool:
    return False


def parts_of(distribution: Distribution) -> list[Distribution]:
    """Return the distributions that a wrapper, a mixture or a spike-and-slab is made of."""
    return [part for name in _PARTS if (part := getattr(distribution, name, None)) is not None]


def structure(distribution: Distribution) -> tuple:
    """Return the types of a distribution, its transforms and its parts; no tensor is read."""
    transforms = tuple(map(type, getattr(distribution, "transforms", ())))
    return (type(distribution), transforms, *map(structure, parts_of(distribution)))


def is_continuous(distribution: Distribution) -> bool:
    """Return True unless the distribution declares a discrete support."""
    with contextlib.suppress(NotImplementedError):
        support = distribution.support
        return support is None or not support.is_discrete
    return True


def _is_from_a_library(maker: object) -> bool:
    return maker.__module__.startswith(_LIBRARIES)


def _is_without_plateaus(transform: Transform) -> bool:
    if isinstance(transform, ComposeTransform):
        return all(map(_is_without_plateaus, transform.parts))
    return transform.bijective or isinstance(transform, (AbsTransform, SoftmaxTransform))


def _repeats_draws(distribution: Distribution) -> bool:
    """Return True if one value is drawn three times among others."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        draws = distribution.rsample if distribution.has_rsample else distribution.sample
        values = draws((_PROBES,)).reshape(_PROBES, -1).sort(0).values
    if values.dtype.itemsize < 4:  # 16-bit numbers repeat by chance
        return False
    # If all draws are equal, the class holds its noise fixed on purpose.
    return bool(((values[2:] == values[:-2]).any(0) & (values[0] != values[-1])).any())
