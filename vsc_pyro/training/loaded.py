"""Data that are evaluated: in memory, or those of a `DataLoader`, which may be larger than memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vsc_pyro._seeding import generators_seeded
from vsc_pyro.datasets import Dataset
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE, check_is_vae
from vsc_pyro.training.batch_checks import data_of, naming_batch
from vsc_pyro.training.batches import checksum, generators_of

_END = object()
_ROWS_AT_ONCE = 1000


class Loaded:
    """The data of a `DataLoader` in its order, read again in every pass; what evaluation needs of a `Dataset`.

    A first pass counts and checks the data. torch's random numbers on the CPU, and those of generators of the loader
    and its samplers, are the loader's own while it reads and depend on `seed` alone. So all passes read the same data
    in the same order, also if the loader shuffles, and draws of codes equal those for data in memory.

    Args:
        loader: yields tensors of shape ``(B, ...)``, or tuples or lists whose first entry is one.
        seed: seed of the random numbers that the loader draws.
        models: check every batch.

    Attributes:
        images: the first datum, shape ``(1, ...)``.
        checksum: CRC-32 of the data in their order, whatever the sizes of batches.

    Raises:
        ValueError: no datum, batches of another kind, or data that do not fit a model.
    """

    binarize = None
    labels = None
    name = "data"

    def __init__(self, loader: DataLoader, seed: int, *models: VAE) -> None:
        self._loader = loader
        self._seed = seed
        self._num_data = self.checksum = self._first_checksum = 0
        self.images = torch.empty(0)
        for number, batch in enumerate(self._read(), start=1):
            with naming_batch(f"{number} of the DataLoader"):
                x = data_of(batch)
                for model in models:
                    model.check_data(x)
            self.checksum = checksum(x, self.checksum)
            if not self._num_data:
                self.images, self._first_checksum = x[:1].clone(), self.checksum
            self._num_data += len(x)
        if not self._num_data:
            raise ValueError("data must be a DataLoader with at least one batch, got none; take a smaller batch_size")

    def __len__(self) -> int:
        return self._num_data

    def check_repeats(self) -> None:
        """Read the first batch again, and raise `ValueError` unless it is that of the first pass."""
        with contextlib.closing(self._read()) as batches:
            again = [checksum(data_of(batch)) for batch in itertools.islice(batches, 1)]
        if again != [self._first_checksum]:
            raise ValueError(
                "data must be a DataLoader that yields the same data in every pass, got other data in a second one; "
                "let it draw random numbers from torch, without persistent_workers, or pass data in memory"
            )

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the data in order, `size` at a time, whatever the sizes of the loader's batches."""
        held: list[Tensor] = []
        count = 0
        for batch in self._read():
            held.append(data_of(batch))
            count += len(held[-1])
            if count > len(self):
                raise self._changed()
            if sum(map(len, held)) >= size:
                *full, rest = torch.cat(held).split(size)
                if len(rest) == size:
                    full, rest = [*full, rest], rest[:0]
                yield from full
                held = [rest] if len(rest) else []
        if count < len(self):
            raise self._changed()
        if held:
            yield torch.cat(held)

    def _changed(self) -> ValueError:
        return ValueError(
            f"data must be a DataLoader that yields the same data in every pass, got one of {len(self)} data in the "
            "first pass and another number in a later one; let its dataset start anew in each iteration, or pass "
            "torch.cat of its batches"
        )

    def draw(self, indices: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        """Return some of the data in memory, in order; shape ``(B, ...)``."""
        wanted = torch.zeros(len(self), dtype=torch.bool)
        wanted[indices] = True
        starts = range(0, len(self), _ROWS_AT_ONCE)
        return torch.cat([x[wanted[i : i + len(x)]] for i, x in zip(starts, self.batches(_ROWS_AT_ONCE), strict=True)])

    def _read(self) -> Generator[Any, None, None]:
        """Yield the batches, read with random numbers of their own."""
        state = torch.Generator().manual_seed(self._seed).get_state()
        batches, batch = None, None
        with generators_seeded(generators_of(self._loader), self._seed):
            while batch is not _END:
                with torch.random.fork_rng([]):
                    torch.set_rng_state(state)
                    batches = iter(self._loader) if batches is None else batches
                    batch = next(batches, _END)
                    state = torch.get_rng_state()
                if batch is not _END:
                    yield batch


def as_readable(data: Any, seed: int, *models: VAE) -> Dataset | Loaded:
    """Return data that fit all models as a `Dataset`, or a `DataLoader` as `Loaded`.

    Raises:
        ValueError: data of another kind, or that do not fit a model.
    """
    for model in models:
        check_is_vae(model)
    if isinstance(data, DataLoader):
        return Loaded(data, seed, *models)
    data = in_memory(data)
    for model in models:
        model.check_data(data.images)
    return data
