"""Minibatches for `fit`, from data in memory or from a `torch.utils.data.DataLoader`."""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SubsetRandomSampler
from torch.utils.data.distributed import DistributedSampler

from vsc_pyro._arguments import positive_int
from vsc_pyro._seeding import generators_seeded, seeded
from vsc_pyro.datasets import Dataset, as_dataset
from vsc_pyro.models.data_checks import check_resolved, inner
from vsc_pyro.training.batch_checks import EpochChecks, data_of, naming_batch
from vsc_pyro.training.parallel import num_processes

if TYPE_CHECKING:
    from vsc_pyro.models.vae import VAE

# Number of data that are read from a loader or stream before training: enough to initialise pseudo-inputs.
SAMPLE_SIZE = 1000


class Batches:
    """Minibatches, epoch by epoch.

    Attributes:
        num_data: number of data, N.
        batch_size: number of data in a minibatch; None if a sampler decides.
        num_steps: number of minibatches in an epoch.
        full_size: number of data in the first minibatch, and in all but the last.
        smallest: number of data in the last minibatch of an epoch; None if unknown.
        sample: data to inspect before training, shape ``(n, ...)``: all data in memory, or the first data of a loader
            or stream.
        has_passes: True if an epoch is a pass over all data.
        generators: random generators of the order and, for data in memory, of the binarisation.
    """

    num_data: int
    batch_size: int | None
    num_steps: int
    full_size: int
    smallest: int | None
    generators: list[torch.Generator]
    has_passes: ClassVar[bool] = True

    @property
    def sample(self) -> Tensor:
        raise NotImplementedError

    def check(self, model: VAE) -> None:
        """Raise `ValueError` unless `model` can be trained on the sample. A loader checks later batches in turn."""
        model.check_data(self.sample)

    def to(self, like: Tensor) -> None:
        """Return later minibatches on the device of the tensor `like`, in its floating-point type."""
        raise NotImplementedError

    def sources(self, number: int, limit: int | None = None) -> Iterator[Tensor]:
        """Yield the arguments of `gather` for epoch `number` (from 0): tensors of B rows on the device.

        With `limit`, only the first ones.
        For data in memory these are indices, so that a captured step can contain the gathering.
        """
        raise NotImplementedError

    def gather(self, source: Tensor) -> Tensor:
        """Return the minibatch of an entry of `sources`, shape ``(B, ...)``."""
        return source

    def epoch(self, number: int) -> Iterator[Tensor]:
        """Yield the minibatches of epoch `number` (from 0), each of shape ``(B, ...)``."""
        for source in self.sources(number):
            yield self.gather(source)

    def describe(self) -> str:
        """Return a description of the data, which a resumed run must share with the first run."""
        raise NotImplementedError

    def some(self) -> Dataset:
        """Return at most 1,000 of the data, or the first data of a loader, on the device of the model."""
        return Dataset(self.sample[:SAMPLE_SIZE])

    def seeded(self, seed: int) -> contextlib.AbstractContextManager[None]:
        """Seed the generators within the context and restore their states afterwards."""
        return generators_seeded(self.generators, seed)

    def random_state(self) -> Tensor:
        """Return the concatenated states of the generators."""
        return torch.cat([torch.empty(0, dtype=torch.uint8), *(g.get_state() for g in self.generators)])

    def set_random_state(self, state: Tensor) -> None:
        lengths = [len(generator.get_state()) for generator in self.generators]
        for generator, own in zip(self.generators, state.cpu().split(lengths), strict=True):
            generator.set_state(own.clone())  # torch ignores the offset of a view


class MemoryBatches(Batches):
    """Minibatches of data in memory, gathered on the device in a new random order in each epoch.

    Args:
        data: the whole data set.
        batch_size: number of data in a minibatch; the last one of an epoch may be smaller.
    """

    def __init__(self, data: Dataset, batch_size: int) -> None:
        self.data = data
        self.num_data = len(data)
        self.batch_size = self._size = batch_size
        self.num_steps = -(-len(data) // batch_size)
        self.full_size = min(batch_size, len(data))
        self.smallest = len(data) % batch_size or self.full_size
        self.generators = [torch.Generator(data.images.device)]

    @property
    def sample(self) -> Tensor:
        return self.data.images

    def check(self, model: VAE) -> None:
        super().check(model)
        check_resolved(self.sample, model.reference.dtype)

    def to(self, like: Tensor) -> None:
        self.data = self.data.to(like)
        self.generators = [torch.Generator(like.device)]

    def sources(self, number: int, limit: int | None = None) -> Iterator[Tensor]:
        (generator,) = self.generators
        order = torch.randperm(len(self.data), generator=generator, device=generator.device)
        yield from order.split(self._size)[:limit]

    def gather(self, source: Tensor) -> Tensor:
        return self.data.draw(source, *self.generators)

    def some(self) -> Dataset:
        # Rows at equal distances, because data may be sorted by label.
        rows = torch.linspace(0, self.num_data - 1, min(self.num_data, SAMPLE_SIZE)).long()
        return Dataset(self.data.images[rows.to(self.data.images.device)], binarize=self.data.binarize)

    def describe(self) -> str:
        return described(self.data)


def described(data: Dataset) -> str:
    """Return a description of data in memory that other data do not share."""
    return f"{tuple(data.images.shape)}, binarize={data.binarize}, checksum {checksum(data.images):08x}"


def checksum(x: Tensor, before: int = 0) -> int:
    """Return the CRC-32 of the values of a tensor; with that of tensors `before` it, the CRC-32 of all together."""
    return zlib.crc32(x.detach().cpu().contiguous().view(torch.uint8).numpy().data, before)


class ReadBatches(Batches):
    """Minibatches that are read one by one, checked, and copied to the device while that works on earlier ones.

    Raises:
        ValueError: in an epoch, a batch whose shape or type differs from the first batch, or that the model does not
            take.
    """

    _remedy: ClassVar[str]  # what to do about batches of another kind

    def __init__(self) -> None:
        self.generators = []
        self._like = torch.empty(0)
        self._first: Tensor | None = None
        self._sample = torch.empty(0)
        self._model: VAE | None = None
        self._likelihood: Distribution | None = None
        self._has_checked_range = False

    @property
    def sample(self) -> Tensor:
        return self._sample

    def check(self, model: VAE) -> None:
        super().check(model)
        self._model = model

    def to(self, like: Tensor) -> None:
        self._like = like
        self._sample = self._sample.to(like)

    def _read(self, batches: Iterable[object], which: Callable[[int], str]) -> Generator[Tensor, None, None]:
        """Yield the data of `batches`, checked and on the device; `which` names a batch by its number, from 1."""
        count, checks = 0, self._checks()
        for count, batch in enumerate(batches, start=1):
            x = data_of(batch, self._remedy)
            with naming_batch(which(count)):
                self._check_kind(x)
                if checks is not None and not x.is_cuda:
                    checks.model.check_finite(x)  # on the CPU, because the host does not wait for the copy
                x = self._on_device(x)
                if checks is not None:
                    checks.add(x)
            yield x
        if checks is not None and count:
            checks.check(which)
            if not self._has_checked_range:
                self._has_checked_range = True
                checks.check_range()

    def _checks(self) -> EpochChecks | None:
        if self._model is None:
            return None
        if self._likelihood is None:
            self._likelihood = self._model.check_parts(self.sample[:1])
        return EpochChecks(self._model, self._likelihood)

    def _check_kind(self, x: Tensor) -> None:
        if self._first is None:
            self._first = x[:1]
        kind, first = (f"shape (B, {inner(y)}) and type {y.dtype}" for y in (x, self._first))
        if kind != first:
            raise ValueError(f"all batches must have {first}, got {kind}; {self._remedy}")

    def _on_device(self, x: Tensor) -> Tensor:
        device, dtype = self._like.device, self._like.dtype
        # A copy to the CPU that does not block could be read before it is complete.
        if device.type == "cuda" and x.device.type == "cpu" and not x.is_pinned():
            x = x.pin_memory()  # a copy from other memory waits for the device
        # The type changes on the device, because a conversion on the CPU returns memory that is not pinned.
        return x.to(device, non_blocking=device.type == "cuda").to(dtype)


def first_data(batches: Iterable[Tensor]) -> list[Tensor]:
    """Return the first batches: as many as make 1,000 data, or all."""
    first: list[Tensor] = []
    for x in batches:
        first.append(x)
        if sum(map(len, first)) >= SAMPLE_SIZE:
            break
    return first


class LoaderBatches(ReadBatches):
    """Minibatches of a `DataLoader`, in its order, copied to the device while that works on earlier ones.

    Args:
        loader: yields tensors, or tuples or lists whose first entry is the data.
        seed: seed of the data that are read before training.

    Raises:
        ValueError: a loader without length, without a batch, or with batches of another kind. In an epoch, a batch
            whose shape or type differs from the first batch, or that the model does not take.
    """

    _remedy = "let the DataLoader's dataset or collate_fn return that"

    def __init__(self, loader: DataLoader, seed: int) -> None:
        super().__init__()
        self.loader = loader
        batches = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        if batches is loader.sampler and not isinstance(batches, BatchSampler):
            raise ValueError(
                "data must be a DataLoader that makes the batches, so that data can be counted, got one with "
                "batch_size=None; construct it with a batch_size or a batch_sampler"
            )
        sampler = getattr(batches, "sampler", None)
        self.num_data, self.num_steps = _counted(loader, sampler)
        self.batch_size = getattr(batches, "batch_size", None)
        size = None if getattr(batches, "drop_last", True) else self.batch_size
        drawn = self.num_data if sampler is None or isinstance(loader.dataset, IterableDataset) else len(sampler)
        self.smallest = None if size is None else drawn % size or size
        if num_processes() > 1 and isinstance(sampler, DistributedSampler):
            raise ValueError(
                "data must be a DataLoader of all the data, because each process takes its share of every batch, got "
                "one with a DistributedSampler, which divides the data a second time; leave the sampler out"
            )
        self._samplers: list[Any] = [batches] if sampler is None else [batches, sampler]
        self.generators = generators_of(loader)
        with seeded(seed, torch.device("cpu")), self.seeded(seed), contextlib.closing(self.sources(0)) as epoch:
            first = first_data(epoch)
        self._sample, self.full_size = torch.cat(first), len(first[0])

    def sources(self, number: int, limit: int | None = None) -> Generator[Tensor, None, None]:
        for sampler in self._samplers:
            if hasattr(sampler, "set_epoch"):  # torch's DistributedSampler has this method
                sampler.set_epoch(number)
        count = 0
        batches = itertools.islice(self.loader, limit)
        for x in self._read(batches, lambda batch: f"{batch} of epoch {number + 1} of the DataLoader"):
            count += 1
            yield x
        if not count:
            raise ValueError(
                f"the DataLoader yielded no batch in epoch {number + 1}; {type(self.loader.dataset).__name__} must "
                "yield its data again in every iteration"
            )

    def describe(self) -> str:
        order = type(self._samplers[-1]).__name__
        return (
            f"a DataLoader of {self.num_data} data of shape {tuple(self.sample.shape[1:])} in {self.num_steps} batches "
            f"by {order}, {len(self.generators)} generators of its own"
        )


def generators_of(loader: DataLoader) -> list[torch.Generator]:
    """Return the generators that a loader and its samplers own."""
    batches = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    owned = (getattr(owner, "generator", None) for owner in (loader, batches, getattr(batches, "sampler", None)))
    return list({id(g): g for g in owned if isinstance(g, torch.Generator)}.values())


def _counted(loader: DataLoader, sampler: Any) -> tuple[int, int]:
    """Return the number of data and of batches of a loader."""
    try:
        counted: Any = sampler if isinstance(sampler, SubsetRandomSampler) else loader.dataset
        num_data, num_steps = len(counted), len(loader)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"data must be a DataLoader of known length, because the objective depends on the number of data, got one "
            f"of {type(loader.dataset).__name__} ({error}); give that class a __len__, or pass steps="
        ) from error
    if not (num_data and num_steps):
        raise ValueError(
            f"data must be a DataLoader with at least one batch, got one of {num_data} data and {num_steps} batches; "
            "take a smaller batch_size, or drop_last=False"
        )
    return num_data, num_steps


def get_batches(
    data: Dataset | Tensor | np.ndarray | DataLoader, batch_size: int | None, seed: int, default_size: int = 200
) -> Batches:
    """Return the minibatches of data in memory or of a loader.

    Args:
        data: see `vsc_pyro.fit`.
        batch_size: number of data in a minibatch, None for `default_size`; None for a loader, which has its own.
        seed: seed of the data that are read from a loader before training.
        default_size: default of `batch_size` for data in memory.

    Raises:
        ValueError: data or a loader that cannot be trained on, or a `batch_size` for a loader.
    """
    if batch_size is not None:
        batch_size = positive_int("batch_size", batch_size)
    if not isinstance(data, DataLoader):
        return MemoryBatches(as_dataset(data), batch_size or positive_int("batch_size", default_size))
    if batch_size is not None:
        raise ValueError(f"batch_size={batch_size} is for data in memory, and a DataLoader has its own; leave it out")
    return LoaderBatches(data, seed)
