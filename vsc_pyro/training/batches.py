"""Where `fit` takes its minibatches from: data in memory, or a `torch.utils.data.DataLoader`."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
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

_DEFAULT_SIZE = 200
# Of a loader's data, what is looked at before training: enough to start pseudo-inputs at, and held in memory.
_LOOKED_AT = 1000


class Batches:
    """Minibatches, epoch by epoch.

    Attributes:
        num_data: how many data there are, N.
        batch_size: data in a minibatch; None where that is left to a sampler.
        num_steps: minibatches in an epoch.
        full_size: data in the first minibatch, as in most.
        smallest: data in the last minibatch of an epoch; None where that is not known.
        sample: data to look at before training, shape ``(n, ...)``: all of them, or a loader's first.
        generators: what the order (and, of data in memory, the binarisation) is drawn from.
    """

    num_data: int
    batch_size: int | None
    num_steps: int
    full_size: int
    smallest: int | None
    sample: Tensor
    generators: list[torch.Generator]

    def check(self, model: VAE) -> None:
        """Raise `ValueError` unless the data are such as `model` takes; of a loader the first, and others in time."""
        model.check_data(self.sample)

    def to(self, like: Tensor) -> None:
        """From now on give minibatches on the device of the tensor `like`, in its floating-point type."""
        raise NotImplementedError

    def sources(self, number: int) -> Iterator[Tensor]:
        """What `gather` makes the minibatches of an epoch of, counted from 0: tensors of B rows on the device.

        Of data in memory these are indices, so that the gathering can be part of a captured step.
        """
        raise NotImplementedError

    def gather(self, source: Tensor) -> Tensor:
        """A minibatch of shape ``(B, ...)``."""
        return source

    def epoch(self, number: int) -> Iterator[Tensor]:
        """The minibatches of an epoch, counted from 0, each of shape ``(B, ...)``."""
        for source in self.sources(number):
            yield self.gather(source)

    def describe(self) -> str:
        """What a resumed run must have in common with the one that it goes on with."""
        raise NotImplementedError

    def some(self) -> Dataset:
        """At most 1,000 of the data, or a loader's first, on the model's device; as `Dataset.draw` shows them."""
        return Dataset(self.sample[:_LOOKED_AT])

    @contextlib.contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Its generators seeded within, and afterwards as they were."""
        before = self.random_state()
        for generator in self.generators:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            self.set_random_state(before)

    def random_state(self) -> Tensor:
        """The states of its generators, one after the other."""
        return torch.cat([torch.empty(0, dtype=torch.uint8), *(g.get_state() for g in self.generators)])

    def set_random_state(self, state: Tensor) -> None:
        lengths = [len(generator.get_state()) for generator in self.generators]
        for generator, own in zip(self.generators, state.cpu().split(lengths), strict=True):
            generator.set_state(own.clone())  # torch reads from the start of the memory that a view is of


class MemoryBatches(Batches):
    """Minibatches gathered on the device, in a new random order in each epoch.

    Args:
        data: all of it.
        batch_size: data in a minibatch; the last of an epoch may be smaller.
    """

    def __init__(self, data: Dataset, batch_size: int) -> None:
        self.data = data
        self.num_data = len(data)
        self.batch_size = batch_size
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
        yield from order.split(self.batch_size)

    def gather(self, source: Tensor) -> Tensor:
        return self.data.draw(source, *self.generators)

    def some(self) -> Dataset:
        # From all over the data, which may be in the order of their labels.
        rows = torch.linspace(0, self.num_data - 1, min(self.num_data, _LOOKED_AT)).long()
        return Dataset(self.data.images[rows.to(self.data.images.device)], binarize=self.data.binarize)

    def describe(self) -> str:
        images = self.data.images
        checksum = zlib.crc32(images.detach().cpu().contiguous().view(torch.uint8).numpy())
        return f"{tuple(images.shape)}, binarize={self.data.binarize}, checksum {checksum:08x}"


class LoaderBatches(Batches):
    """Minibatches as a `DataLoader` gives them, in its order, copied to the device while that works on earlier ones.

    Args:
        loader: gives tensors, or tuples or lists of which the first is the data.
        seed: of the data to look at before training.

    Raises:
        ValueError: a loader without length or without a batch, or that gives anything else; the message says which. In
            an epoch, a batch of data of another shape or type than the first, or that the model does not take.
    """

    def __init__(self, loader: DataLoader, seed: int) -> None:
        self.loader = loader
        batches = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
        if batches is loader.sampler and not isinstance(batches, BatchSampler):
            raise ValueError(
                "data must be a DataLoader that makes the batches, so that data can be counted, got one with "
                "batch_size=None; pass it a batch_size or a batch_sampler"
            )
        sampler = getattr(batches, "sampler", None)
        self.num_data, self.num_steps = _counted(loader, sampler)
        self.batch_size = getattr(batches, "batch_size", None)
        size = None if getattr(batches, "drop_last", True) else self.batch_size
        drawn = self.num_data if sampler is None or isinstance(loader.dataset, IterableDataset) else len(sampler)
        self.smallest = None if size is None else drawn % size or size
        if num_processes() > 1 and isinstance(sampler, DistributedSampler):
            raise ValueError(
                "data must be a DataLoader of all the data, of whose batches each process takes its share, got one "
                "with a DistributedSampler, of whose part a part would be left; leave the sampler out"
            )
        self._samplers = [batches] if sampler is None else [batches, sampler]
        owned = (getattr(owner, "generator", None) for owner in (loader, *self._samplers))
        self.generators = list({id(g): g for g in owned if isinstance(g, torch.Generator)}.values())
        self._like = torch.empty(0)
        self._first: Tensor | None = None
        self._model: VAE | None = None
        self._has_checked_range = False
        with seeded(seed, torch.device("cpu")), self.seeded(seed):
            self.sample, self.full_size = self._first_data()

    def _first_data(self) -> tuple[Tensor, int]:
        """Return the data of the first batches, and the size of the first one."""
        first: list[Tensor] = []
        with contextlib.closing(self.sources(0)) as epoch:
            for x in epoch:
                first.append(x)
                if sum(map(len, first)) >= _LOOKED_AT:
                    break
        return torch.cat(first), len(first[0])

    def check(self, model: VAE) -> None:
        super().check(model)
        self._model = model

    def to(self, like: Tensor) -> None:
        self._like = like
        self.sample = self.sample.to(like)

    def sources(self, number: int) -> Iterator[Tensor]:
        for sampler in self._samplers:
            if hasattr(sampler, "set_epoch"):  # as torch's DistributedSampler has
                sampler.set_epoch(number)
        given, seen = 0, _Seen(self._model, self.sample) if self._model is not None else None
        for given, batch in enumerate(self.loader, start=1):
            x = data_of(batch)
            with naming_batch(f"{given} of epoch {number + 1}"):
                self._check_kind(x)
                if seen is not None and not x.is_cuda:
                    check_finite(x, self._like.dtype)  # before the copy, which the host does not wait for
                x = self._on_device(x)
                if seen is not None:
                    seen.add(x)
            yield x
        if not given:
            raise ValueError(
                f"the DataLoader gave no batch in epoch {number + 1}; {type(self.loader.dataset).__name__} must give "
                "its data anew whenever it is iterated over"
            )
        if seen is not None:
            seen.check(number)
            if not self._has_checked_range:
                self._has_checked_range = True
                seen.check_range()

    def _check_kind(self, x: Tensor) -> None:
        if self._first is None:
            self._first = x[:1]
        kind, first = (f"shape (B, {inner(y)}) and type {y.dtype}" for y in (x, self._first))
        if kind != first:
            raise ValueError(f"all batches must be of one {first}, got {kind}; let the DataLoader's dataset give that")

    def _on_device(self, x: Tensor) -> Tensor:
        device, dtype = self._like.device, self._like.dtype
        if device.type == "cuda" and x.device.type == "cpu" and not x.is_pinned():
            x = x.pin_memory()  # from other memory a copy waits for the device
        # Its type changes there: before the copy it would be changed into memory that is not pinned.
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
        counted = sampler if isinstance(sampler, SubsetRandomSampler) else loader.dataset
        num_data, num_steps = len(counted), len(loader)
    except (TypeError, NotImplementedError) as error:
        raise ValueError(
            f"data must be a DataLoader of known length, for the objective weighs by the number of data, got one "
            f"of {type(loader.dataset).__name__} ({error}); give that a __len__"
        ) from error
    if not (num_data and num_steps):
        raise ValueError(
            f"data must be a DataLoader with at least one batch, got one of {num_data} data and {num_steps} batches; "
            "take a smaller batch_size, or drop_last=False"
        )
    return num_data, num_steps


def get_batches(data: Dataset | Tensor | np.ndarray | DataLoader, batch_size: int | None, seed: int) -> Batches:
    """The minibatches of data in memory or of a loader.

    Args:
        data: what `vsc_pyro.fit` takes.
        batch_size: data in a minibatch, None for 200; None for a loader, which has its own.
        seed: of the data to look at before training, for a loader.

    Raises:
        ValueError: data or loaders that cannot be trained on, or a `batch_size` for a loader.
    """
    if batch_size is not None:
        batch_size = positive_int("batch_size", batch_size)
    if not isinstance(data, DataLoader):
        return MemoryBatches(as_dataset(data), batch_size or _DEFAULT_SIZE)
    if batch_size is not None:
        raise ValueError(f"batch_size={batch_size} is for data in memory, and a DataLoader has its own; leave it out")
    return LoaderBatches(data, seed)


def data_of(batch: object) -> Tensor:
    """The data of a batch of a loader: the batch itself, or the first entry of a tuple or list."""
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(x, Tensor) or x.ndim < 2 or not len(x):
        got = f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(batch).__name__}"
        raise ValueError(
            f"batches must be tensors of shape (B, ...), or tuples or lists of which the first is one, got {got}; "
            "let the DataLoader's dataset or collate_fn give that"
        )
    return x


@contextlib.contextmanager
def naming_batch(which: str) -> Iterator[None]:
    """Errors within are those of that batch of a loader."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"batch {which} of the DataLoader: {error}") from error


class _Seen:
    """What is known of the batches of an epoch, which on a GPU is not waited for.

    Args:
        model: that they are checked for, where it is.
        sample: data that have been checked.
    """

    def __init__(self, model: VAE, sample: Tensor) -> None:
        self._model = model
        self._likelihood = model.check_parts(sample[:1])
        self._are_inside: list[Tensor] = []
        self._ranges: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Check a batch; `ValueError` if it is on the CPU and outside the support of the likelihood."""
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
        """Let priors that started from the sample know the range of all data."""
        low, high = torch.stack(self._ranges).T
        for module in self._model.modules():
            if isinstance(module, Prior):
                module.check_range(low.min(), high.max())
