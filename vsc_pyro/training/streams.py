"""Minibatches for `fit` from a stream: an iterator or iterable of batches, possibly without end."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vsc_pyro.datasets import Dataset, as_dataset
from vsc_pyro.training.batch_checks import data_of, naming_batch
from vsc_pyro.training.batches import SAMPLE_SIZE, ReadBatches, first_data

KINDS = (
    "data must be a Dataset, an array or tensor (or data frame, or list of rows) of shape (N, ...), a DataLoader, or, "
    "with steps=, an iterable of tensors or arrays of shape (B, ...)"
)
_PARTS = 100  # at most, in a run
_STREAM = 2**31  # apart from the ranks of processes, so that a stream's seed is not a process's
_END = object()


class StreamBatches(ReadBatches):
    """Minibatches of a stream, as it yields them. An epoch is one of at most 100 equal parts of the run.

    The first batches, about 1,000 data, are read at construction and are the first to be trained on. After that, no
    batch is read before the step that takes it. torch's random numbers on the CPU are the stream's own while it draws:
    they depend on `seed` alone, and are the same in all processes.

    Args:
        stream: yields tensors or arrays of shape ``(B, ...)``, or tuples or lists whose first entry is one. If
            ``iter(stream)`` is another object, `stream` starts anew when it ends.
        steps: number of steps in the run.
        seed: seed of the stream's random numbers.
        start: number of the batch to begin with. A method ``stream.start_at(start)`` returns an iterator that begins
            there; without it, batches are skipped, or `stream` goes on, with a warning, if it cannot start anew.
        steps_per_epoch: number of steps in an epoch, of a run that is resumed; 0 for a hundredth of `steps`.

    Raises:
        ValueError: a stream without a batch, or with batches of another kind. In an epoch, a batch whose shape or type
            differs from the first batch, or that the model does not take, or a stream that ends.
    """

    has_passes: ClassVar[bool] = False
    _remedy = f"let the stream yield that ({KINDS})"

    def __init__(self, stream: Iterable[Any], steps: int, seed: int, start: int = 0, steps_per_epoch: int = 0) -> None:
        super().__init__()
        self.num_steps = steps_per_epoch or -(-steps // _PARTS)
        self.batch_size, self._stream_seed = getattr(stream, "batch_size", None), getattr(stream, "seed", None)
        self.smallest = None
        self._steps = steps
        self._seed = seed
        jumps = hasattr(stream, "start_at")
        restarts = jumps or not isinstance(stream, Iterator)
        if start and not restarts:
            warnings.warn(
                f"data is an iterator, which cannot start anew: the resumed run goes on after {start} steps with the "
                "data that come next, which need not be those of an uninterrupted run; pass an iterable, such as an "
                "object whose __iter__ is a generator, to repeat them",
                stacklevel=6,
            )
        batches = self._drawn(_passes(stream, start if jumps else 0), 0 if restarts and not jumps else start, start)
        wanted = max(1, steps - start)
        first = first_data(self._held(itertools.islice(batches, wanted), start))
        if not first:
            raise ValueError(f"the stream, a {type(stream).__name__}, yielded no batch; {KINDS}")
        if len(first) < wanted and sum(map(len, first)) < SAMPLE_SIZE:
            raise self._ended(start + len(first))
        self._batches = itertools.chain(first, batches)
        self._sample, self.full_size = torch.cat(first), len(first[0])
        self.num_data = getattr(stream, "num_data", steps * self.full_size)

    def _held(self, batches: Iterable[object], start: int) -> Iterator[Tensor]:
        """Yield copies of the data of `batches`, because a stream may overwrite a batch when it draws the next."""
        for number, batch in enumerate(batches, start + 1):
            x = data_of(batch, self._remedy)
            with naming_batch(f"{number} of the stream"):
                self._check_kind(x)
            yield x.clone()

    def _drawn(self, batches: Iterator[object], first: int, start: int) -> Iterator[object]:
        """Yield `batches`, numbered from `first`, from number `start` on, each drawn with its own random numbers."""
        for number in itertools.count(first):
            with self._drawing(number):
                batch = next(batches, _END)
                if batch is not _END and number >= start:
                    batch = _without_gradient(batch)
            if batch is _END:
                return
            if number >= start:
                yield batch

    @contextlib.contextmanager
    def _drawing(self, number: int) -> Iterator[None]:
        """Within the context: the random numbers of a batch, and modes of torch that the stream may leave on.

        A generator that yields within ``torch.no_grad()`` leaves that mode on; leaving the context ends it. When such a
        generator is deleted, at any time, torch returns to the mode that it began in: so it begins with gradients.
        """
        with torch.random.fork_rng([]), torch.inference_mode(False), torch.enable_grad():
            entropy = np.random.SeedSequence([self._seed, number, _STREAM]).generate_state(1)
            torch.default_generator.manual_seed(int(entropy[0]))
            yield

    def sources(self, number: int, limit: int | None = None) -> Generator[Tensor, None, None]:
        before, count = number * self.num_steps, 0
        wanted = self.num_steps if limit is None else min(limit, self.num_steps)
        for x in self._read(itertools.islice(self._batches, wanted), lambda n: f"{before + n} of the stream"):
            count += 1
            yield x
        if count < wanted:
            raise self._ended(before + count)

    def _ended(self, taken: int) -> ValueError:
        return ValueError(
            f"the stream ended after {taken} of {self._steps} steps; the last checkpoint, if one was written, is "
            "untouched; pass fewer steps, or an iterable that can start anew"
        )

    def describe(self) -> str:
        seed = f", seed {self._stream_seed}" if isinstance(self._stream_seed, int) else ""
        return f"a stream of data of shape {tuple(self.sample.shape[1:])}{seed}"


def _passes(stream: Any, start: int) -> Iterator[object]:
    """Yield the batches of `stream`, again and again if it can start anew; from number `start` on, if not 0."""
    current = stream.start_at(start) if start else iter(stream)
    while True:
        is_empty = True
        for batch in current:
            is_empty = False
            yield batch
        if is_empty or isinstance(stream, Iterator):
            return
        current = iter(stream)


def _without_gradient(batch: object) -> object:
    """Return the data of a batch without gradient, if they are a tensor; anything else unchanged, for `data_of`."""
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x.detach()  # autograd takes no tensors of inference mode
    return x


def is_stream(data: object, steps: int | None) -> bool:
    """Return True if `data` is an iterable of batches: neither in memory nor a loader of known length.

    A list is a stream if its first entry is a tensor of more than one dimension.
    """
    if isinstance(data, DataLoader):
        return steps is not None and not _has_length(data)
    if isinstance(data, list):
        return bool(data) and isinstance(data[0], Tensor) and data[0].ndim > 1
    known = (Dataset, Tensor, np.ndarray, tuple, Mapping, str, bytes, os.PathLike)
    is_array = hasattr(data, "__array__") or hasattr(data, "toarray")
    return isinstance(data, Iterable) and not isinstance(data, known) and not is_array


def _has_length(loader: DataLoader) -> bool:
    try:
        return len(loader) >= 0
    except (TypeError, NotImplementedError):
        return False


def check_kind(data: Any) -> None:
    """Raise `ValueError` unless `data` is of a kind that `fit` takes."""
    if isinstance(data, (Dataset, Tensor, np.ndarray, DataLoader)):
        return
    if isinstance(data, list) or hasattr(data, "__array__") or hasattr(data, "toarray"):
        as_dataset(data)
        return
    raise ValueError(
        f"{KINDS}, got a {type(data).__name__} (which has no __array__); put a torch Dataset into a DataLoader"
    )
