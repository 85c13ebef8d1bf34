"""Variables of an ArviZ object by group and name: joined, measured, named, and assembled."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vsc_pyro.arviz_bridge.versions import from_datasets

if TYPE_CHECKING:
    import arviz
    import xarray

    Variables = dict[tuple[str, str], xarray.Variable]  # by group and name


def concatenated(parts: list[Variables], dim: str) -> Variables:
    """Concatenate each variable along `dim`; a variable without it is equal in all parts.

    The parts are emptied on the way, so that memory holds one variable twice, not all of them.
    """
    from xarray import Variable

    joined = {}
    for key in list(parts[0]):
        values = [part.pop(key) for part in parts]
        joined[key] = Variable.concat(values, dim) if dim in values[0].dims else values[0]
    return joined


def as_arviz(
    variables: Variables, names: dict[Hashable, np.ndarray], attributes: dict[str, Any]
) -> arviz.InferenceData | xarray.DataTree:
    """Return an ArviZ object of the variables, with the coordinates `names` of each dimension."""
    from xarray import Dataset

    groups: dict[str, dict[str, xarray.Variable]] = {}
    for (group, name), value in variables.items():
        groups.setdefault(group, {})[name] = value
    datasets = {}
    for group, members in groups.items():
        used = {dim: names[dim] for value in members.values() for dim in value.dims}
        datasets[group] = Dataset(members, used, attributes)
    return from_datasets(datasets)


def check_size(example: Variables, sizes: dict[Hashable, int], max_gigabytes: float, asked: str, remedy: str) -> None:
    """Raise a ValueError that names the largest variable if all together need more memory than `max_gigabytes`."""
    gigabytes = {
        key: math.prod(sizes[dim] for dim in value.dims) * value.dtype.itemsize / 2**30
        for key, value in example.items()
    }
    if sum(gigabytes.values()) > max_gigabytes:
        (group, name), most = max(gigabytes.items(), key=lambda item: item[1])
        raise ValueError(
            f"{asked} would take {sum(gigabytes.values()):.3g} GiB ({group}.{name} alone {most:.3g}), and "
            f"max_gigabytes is {max_gigabytes:g}; pass {remedy}fewer num_samples, predictive=False, or raise "
            "max_gigabytes"
        )


def checked_coords(coords: Mapping[str, Sequence[Any]], sizes: dict[Hashable, int]) -> dict[Hashable, np.ndarray]:
    """Return the names as arrays, or raise a ValueError for an unknown dimension, a wrong number, or duplicates."""
    if not isinstance(coords, Mapping):
        raise ValueError(f"coords must map dimensions to names, {{'latent': [...]}}, got {coords!r}")
    arrays: dict[Hashable, np.ndarray] = {dim: np.asarray(names) for dim, names in coords.items()}
    for dim, names in arrays.items():
        if names.shape != (sizes.get(dim),):
            known = ", ".join(f"{name} ({size})" for name, size in sizes.items())
            raise ValueError(
                f"coords[{dim!r}] must be a name for each entry, got shape {names.shape}; the dimensions and their "
                f"sizes are {known}"
            )
        if len(set(names.tolist())) < len(names):
            raise ValueError(f"coords[{dim!r}] must be different names, got {names.tolist()}")
    return arrays
