"""Validation: the bound on data that are not trained on, after each epoch, and early stopping by it.

The bound is the `objective` of `vsc_pyro.evaluate`: the ELBO with hard spikes, at a weight of 1 of the KL divergence
whatever beta and warm-up are. Its likelihood is in closed form for a linear normal decoder, and otherwise that of one
draw of each code, from the same random numbers in every epoch, so epochs differ by their weights alone.

References
    L. Prechelt (1998), Early stopping - but when?
"""

from __future__ import annotations

import functools
import math
import numbers
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vsc_pyro._seeding import own_random_numbers
from vsc_pyro.datasets import Dataset, as_dataset
from vsc_pyro.evaluation.bounds import expected_log_likelihood, figures_of_batch, measured
from vsc_pyro.evaluation.importance import Weighing
from vsc_pyro.models.precision import networks_in
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.batches import described
from vsc_pyro.training.history import History, NonFiniteLossError
from vsc_pyro.training.loaded import Loaded, as_readable
from vsc_pyro.training.parallel import from_the_first
from vsc_pyro.training.streams import check_kind, is_stream


class Measures(NamedTuple):
    """Measures of a model on validation data, see the attributes of `vsc_pyro.History`."""

    bound: float
    used_latents: int
    expected_l0: float


class Validation:
    """Data that are not trained on.

    Args:
        data: fit the model.
        seed: of draws and binarisation, the same in every epoch.
    """

    def __init__(self, data: Dataset | Loaded, seed: int) -> None:
        self._data = data
        self._seed = seed

    def to(self, like: Tensor) -> None:
        """Move data in memory to the device of the tensor `like`, in its floating-point type."""
        if isinstance(self._data, Dataset):
            self._data = self._data.to(like)

    def describe(self) -> str:
        """Return a description of the data, which a resumed run must share with the first run."""
        data = self._data
        if isinstance(data, Dataset):
            return described(data)
        shape = tuple(data.images.shape[1:])
        return f"a DataLoader of {len(data)} data of shape {shape}, checksum {data.checksum:08x}"

    def measure(self, model: VAE) -> Measures:
        """Measure `model` in evaluation mode, its networks in float32. The random numbers of a run stay untouched."""
        return from_the_first(functools.partial(self._measure, model))

    def _measure(self, model: VAE) -> Measures:
        with own_random_numbers(), networks_in(model, "float32"):
            batch = functools.partial(_of_batch, model)
            parts = measured("validation", model, self._data, 1, self._seed, False, False, batch)
        bounds, counts, are_used = zip(*parts, strict=True)
        used = int(torch.stack(are_used).any(0).sum())
        return Measures(float(torch.cat(bounds).mean()), used, float(torch.cat(counts).mean()))


def _of_batch(model: VAE, x: Tensor, weigh: Weighing) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bound and the expected number of active latents of each datum, and True for latents that are on."""
    figures, closed = figures_of_batch(model, True, None, x, weigh), expected_log_likelihood(model, x)
    likelihood, inclusion = figures.reconstruction if closed is None else closed, figures.inclusion.double()
    return likelihood.double() - figures.trained_kl.double(), inclusion.sum(1), (inclusion > 0.5).any(0)


def held_out(model: VAE, data: Any, validation: Any, steps: int | None, seed: int) -> tuple[Any, Validation | None]:
    """Return the data to train on and the validation data, see `vsc_pyro.fit`.

    Raises:
        ValueError: a share outside (0, 1), or of data that are not in memory; data that do not fit the model; a loader
            whose second pass begins with other data.
    """
    if validation is None:
        return data, None
    if isinstance(validation, numbers.Real):
        if isinstance(validation, bool) or not 0 < float(validation) < 1:
            raise ValueError(f"validation must be data, or a share of data above 0 and below 1, got {validation!r}")
        if isinstance(data, DataLoader) or is_stream(data, steps):
            raise ValueError(
                f"validation={validation!r} splits data in memory, and data is a {type(data).__name__}; keep some data "
                "out of it and pass these, in memory or as a DataLoader"
            )
        check_kind(data)
        data = as_dataset(data)
        model.check_data(data.images)
        data, validation = _split(data, float(validation), seed)
    try:
        readable = as_readable(validation, seed, model)
        if isinstance(readable, Loaded):
            readable.check_repeats()
    except ValueError as error:
        raise ValueError(f"validation: {error}") from error
    return data, Validation(readable, seed)


def _split(data: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return the data without a random share, and that share."""
    number = max(1, round(share * len(data)))
    if number >= len(data):
        raise ValueError(f"validation={share!r} of {len(data)} data leaves none to train on; pass more data")
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return data[order[number:].sort().values], data[order[:number].sort().values]


def record(history: History, found: Measures) -> None:
    """Add the measures of an epoch to the history.

    Raises:
        NonFiniteLossError: a measure that is not finite.
    """
    if not math.isfinite(found.bound + found.expected_l0):
        raise NonFiniteLossError(
            f"the validation bound became {found.bound} in epoch {len(history)}; the last checkpoint, if one was "
            "written, is untouched; try a lower lr, or look for outliers in the validation data"
        )
    history.validation.append(found.bound)
    history.used_latents.append(found.used_latents)
    history.expected_l0.append(found.expected_l0)


def bounds_after_warmup(history: History) -> list[float | None]:
    """Return the validation bound of each epoch; None for those of the warm-up, and without validation."""
    bounds: list[float | None] = [None] * len(history)
    start = _warmup_epochs(history)
    bounds[start:] = history.validation[start:] or bounds[start:]
    return bounds


def is_exhausted(history: History, patience: int) -> bool:
    """Return True if the validation bound has not improved for `patience` epochs after the warm-up."""
    best = history.best_epoch
    return best is not None and len(history) - max(best, _warmup_epochs(history)) >= patience


def _warmup_epochs(history: History) -> int:
    return -(-history.warmup_steps // max(1, history.steps_per_epoch))
