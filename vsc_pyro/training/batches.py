"""Minibatches for `fit`, from data in memory or from a `torch.utils.data.DataLoader`."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SubsetRandomSampler
from torch.utils.data.distributed import DistributedSampler

from vsc_pyro._arguments import positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.datasets import Dataset, as_dataset
from vsc_pyro.models.data_checks import are_in_support, check_finite, check_support, inner, must_be_inside
from vsc_pyro.models.priors import Prior
from vsc_pyro.training.parallel import num_processes

if TYPE_CHECKING:
    from vsc_pyro.models.vae import VAE

# Number of data of a loader that are held in memory before training: enough to initialise pseudo-inputs.
_SAMPLE_SIZE = 1000


class Batches:
    """Minibatches, epoch by epoch.

    Attributes:
        num_data: number of data, N.
        batch_size: number of data in a minibatch; None if a sampler decides.
        num_steps: number of minibatches in an epoch.
        full_size: number of data in the first minibatch, and in all but the last.
        smallest: number of data in the last minibatch of an epoch; None if unknown.
        sample: data to inspect before training, shape ``(n, ...)``: all data in memory, or the first data of a loader.
        generators: random generators of the order and, for data in memory, of the binarisation.
    """

    num_data: int
    batch_size: int | None
    num_steps: int
    full_size: int
    smallest: int | None
    generators: list[torch.Generator]

    @property
    def sample(self) -> Tensor:
        raise NotImplementedError

    def check(self, model: VAE) -> None:
        """Raise `ValueError` unless `model` can be trained on the sample. A loader checks later batches in turn."""
        model.check_data(self.sample)

    def to(self, like: Tensor) -> None:
        """Return later minibatches on the device of the tensor `like`, in its floating-point type."""
        raise NotImplementedError

    def sources(self, number: int) -> Iterator[Tensor]:
        """Yield the arguments of `gather` for epoch `number` (from 0): tensors of B rows on the device.

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
        return Dataset(self.sample[:_SAMPLE_SIZE])

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Seed the generators within the context and restore their states afterwards."""
        before = self.random_state()
        for generator in self.generators:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            self.set_random_state(before)

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

    def to(self, like: Tensor) -> None:
        self.data = self.data.to(like)
        self.generators = [torch.Generator(like.device)]

    def sources(self, number: int) -> Iterator[Tensor]:
        (generator,) = self.generators
        order = torch.randperm(len(self.data), generator=generator, device=generator.device)
        yield from order.split(self._size)

    def gather(self, source: Tensor) -> Tensor:
        return self.data.draw(source, *self.generators)

    def some(self) -> Dataset:
        # Rows at equal distances, because data may be sorted by label.
        rows = torch.linspace(0, self.num_data - 1, min(self.num_data, _SAMPLE_SIZE)).long()
        return Dataset(self.data.images[rows.to(self.data.images.device)], binarize=self.data.binarize)

    def describe(self) -> str:
        images = self.data.images
        return f"{tuple(images.shape)}, binarize={self.data.binarize}, checksum {checksum(images):08x}"


def checksum(x: Tensor) -> int:
    """Return the CRC-32 of the values of a tensor."""
    return zlib.crc32(x.detach().cpu().contiguous().view(torch.uint8).numpy().data)


class LoaderBatches(Batches):
    """Minibatches of a `DataLoader`, in its order, copied to the device while that works on earlier ones.

    Args:
        loader: yields tensors, or tuples or lists whose first entry is the data.
        seed: seed of the data that are read before training.

    Raises:
        ValueError: a loader without length, without a batch, or with batches of another kind. In an epoch, a batch
            whose shape or type differs from the first batch, or that the model does not take.
    """

    def __init__(self, loader: DataLoader, seed: int) -> None:
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
        owned = (getattr(owner, "generator", None) for owner in (loader, *self._samplers))
        self.generators = list({id(g): g for g in owned if isinstance(g, torch.Generator)}.values())
        self._like = torch.empty(0)
        self._first: Tensor | None = None
        self._model: VAE | None = None
        self._has_checked_range = False
        with seeded(seed, torch.device("cpu")), self.seeded(seed):
            self._sample, self.full_size = self._first_data()

    @property
    def sample(self) -> Tensor:
        return self._sample

    def _first_data(self) -> tuple[Tensor, int]:
        """Return the data of the first batches, and the size of the first batch."""
        first: list[Tensor] = []
        with contextlib.closing(self.sources(0)) as epoch:
            for x in epoch:
                first.append(x)
                if sum(map(len, first)) >= _SAMPLE_SIZE:
                    break
        return torch.cat(first), len(first[0])

    def check(self, model: VAE) -> None:
        super().check(model)
        self._model = model

    def to(self, like: Tensor) -> None:
        self._like = like
        self._sample = self._sample.to(like)

    def sources(self, number: int) -> Generator[Tensor, None, None]:
        for sampler in self._samplers:
            if hasattr(sampler, "set_epoch"):  # torch's DistributedSampler has this method
                sampler.set_epoch(number)
        count, checks = 0, _EpochChecks(self._model, self.sample) if self._model is not None else None
        for count, batch in enumerate(self.loader, start=1):
            x = data_of(batch)
            with naming_batch(f"{count} of epoch {number + 1}"):
                self._check_kind(x)
                if checks is not None and not x.is_cuda:
                    check_finite(x, self._like.dtype)  # on the CPU, because the host does not wait for the copy
                x = self._on_device(x)
                if checks is not None:
                    checks.add(x)
            yield x
        if not count:
            raise ValueError(
                f"the DataLoader yielded no batch in epoch {number + 1}; {type(self.loader.dataset).__name__} must "
                "yield its data again in every iteration"
            )
        if checks is not None:
            checks.check(number)
            if not self._has_checked_range:
                self._has_checked_range = True
                checks.check_range()

    def _check_kind(self, x: Tensor) -> None:
        if self._first is None:
            self._first = x[:1]
        kind, first = (f"shape (B, {inner(y)}) and type {y.dtype}" for y in (x, self._first))
        if kind != first:
            raise ValueError(f"all batches must have {first}, got {kind}; let the DataLoader's dataset return that")

    def _on_device(self, x: Tensor) -> Tensor:
        device, dtype = self._like.device, self._like.dtype
        if device.type == "cuda" and x.device.type == "cpu" and not x.is_pinned():
            x = x.pin_memory()  # a copy from other memory waits for the device
        # The type changes on the device, because a conversion on the CPU returns memory that is not pinned.
        return x.to(device, non_blocking=True).to(dtype)

    def describe(self) -> str:
        order = type(self._samplers[-1]).__name__
        return (
            f"a DataLoader of {self.num_data} data of shape {tuple(self.sample.shape[1:])} in {self.num_steps} batches "
            f"by {order}, {len(self.generators)} generators of its own"
        )


def _counted(loader: DataLoader, sampler: Any) -> tuple[int, int]:
    """Return the number of data and of batches of a loader."""
    try:
        counted: Any = sampler if isinstance(sampler, SubsetRandomSampler) else loader.dataset
        num_data, num_steps = len(counted), len(loader)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"data must be a DataLoader of known length, because the objective depends on the number of data, got one "
            f"of {type(loader.dataset).__name__} ({error}); give that class a __len__"
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


def data_of(batch: object) -> Tensor:
    """Return the data of a loader's batch: the batch itself, or the first entry of a tuple or list."""
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(x, Tensor) or x.ndim < 2 or not len(x):
        got = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(batch).__name__}"
        raise ValueError(
            f"batches must be tensors of shape (B, ...), or tuples or lists whose first entry is one, got {got}; "
            "let the DataLoader's dataset or collate_fn return that"
        )
    return x


@contextlib.contextmanager
def naming_batch(which: str) -> Iterator[None]:
    """Name the batch of a loader in every `ValueError` within the context."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"batch {which} of the DataLoader: {error}") from error


class _EpochChecks:
    """Checks of the batches of an epoch. On a GPU their results are read at the end, so no batch waits.

    Args:
        model: the model to check for, on its device.
        sample: data that have been checked.
    """

    def __init__(self, model: VAE, sample: Tensor) -> None:
        self._model = model
        self._likelihood = model.check_parts(sample[:1])
        self._are_inside: list[Tensor] = []
        self._ranges: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Check a batch; raise `ValueError` at once if it is on the CPU and outside the support of the likelihood."""
        if x.is_cuda:
            self._are_inside.append(x.isfinite().all() & are_in_support(x, self._likelihood))
        else:
            check_support(x, self._likelihood, x)
        self._ranges.append(torch.stack(x.aminmax()))

    def check(self, number: int) -> None:
        """Raise `ValueError` for the first batch that was outside the support."""
        are_inside = torch.stack(self._are_inside).tolist() if self._are_inside else []
        if not all(are_inside):
            with naming_batch(f"{are_inside.index(False) + 1} of epoch {number + 1}"):
                raise ValueError(f"{must_be_inside(self._likelihood)}, and finite; rescale them")

    def check_range(self) -> None:
        """Tell the range of all data to priors that were initialised from the sample."""
        low, high = torch.stack(self._ranges).T
        for module in self._model.modules():
            if isinstance(module, Prior):
                module.check_range(low.min(), high.max())
