"""`is_atom_free`: whether a distribution has atoms, single values of positive probability, hidden ones included."""

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
_PROBES = 300  # that one value of float32 comes up three times in as many draws has a probability below 1e-7
_found_atom_free: dict[tuple, bool] = {}


@functools.singledispatch
def is_atom_free(distribution: Distribution) -> bool:
    """Whether no single value has positive probability, as far as type, parts and a few draws tell.

    The draws are taken once for each class outside of torch, Pyro and this library, from the first of its kind: a
    straight-through or clamped draw comes up again. The random state is left as it is.
    """
    parts = parts_of(distribution)
    if not all(map(is_atom_free, parts)) or not (parts or is_continuous(distribution)):
        return False
    transforms = getattr(distribution, "transforms", ())
    if not all(map(_is_without_plateaus, transforms)):
        return False
    drawn_by = getattr(type(distribution), "rsample" if distribution.has_rsample else "sample")
    if all(_is_librarys(maker) for maker in (drawn_by, *map(type, transforms))):
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
    """The distributions that a wrapper, a mixture or a spike-and-slab is made of."""
    return [part for name in _PARTS if (part := getattr(distribution, name, None)) is not None]


def structure(distribution: Distribution) -> tuple:
    """The types that a distribution is made of, equal for two of one kind; it reads no tensor."""
    transforms = tuple(map(type, getattr(distribution, "transforms", ())))
    return (type(distribution), transforms, *map(structure, parts_of(distribution)))


def is_continuous(distribution: Distribution) -> bool:
    """Whether the support is no countable set, also where a distribution does not say what its support is."""
    with contextlib.suppress(NotImplementedError):
        return not distribution.support.is_discrete
    return True


def _is_librarys(maker: object) -> bool:
    return maker.__module__.startswith(_LIBRARIES)


def _is_without_plateaus(transform: Transform) -> bool:
    if isinstance(transform, ComposeTransform):
        return all(map(_is_without_plateaus, transform.parts))
    return transform.bijective or isinstance(transform, (AbsTransform, SoftmaxTransform))


def _repeats_draws(distribution: Distribution) -> bool:
    """Whether one value comes up three times among others."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        draws = distribution.rsample if distribution.has_rsample else distribution.sample
        values = draws((_PROBES,)).reshape(_PROBES, -1).sort(0).values
    if values.dtype.itemsize < 4:  # too coarse to tell
        return False
    # Draws that are all alike are noise held fixed, which whoever wrote the class means.
    return bool(((values[2:] == values[:-2]).any(0) & (values[0] != values[-1])).any())
