"""`shards`: a folder of files larger than memory, as batches in a random order that a seed repeats."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vsc_pyro._arguments import natural_int, positive_int, yes_or_no
from vsc_pyro._files import expanded
from vsc_pyro.datasets.numbers import as_numbers

_RUN = 64  # successive rows that stay together, so that a disk reads blocks
_GROUP = 16  # batches whose rows are mixed
_SUFFIXES = (".npy", ".safetensors")
_WHOLE = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
_TYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64", *_WHOLE)}
# Names in safetensors: how NumPy maps the numbers, and what they are.
_SAFE_TYPES = {
    "F16": ("<f2", "float16"),
    "BF16": ("<i2", "bfloat16"),
    "F32": ("<f4", "float32"),
    "F64": ("<f8", "float64"),
    "BOOL": ("?", "bool"),
    **{f"I{8 * size}": (f"<i{size}", f"int{8 * size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": (f"<u{size}", f"uint{8 * size}") for size in (1, 2, 4, 8)},
}


class Shards(Dataset):
    """The rows of the files of a folder, memory-mapped, and an endless stream of batches of them; see `shards`.

    Attributes:
        num_data: number of rows N of all files, also ``len(shards)``.
        dim: number of values d in a row.
        batch_size: number of rows in a batch.
        batches_per_pass: number of batches in a pass over all rows.
        seed: of the order.
    """

    def __init__(self, folder: str | os.PathLike, batch_size: int = 1024, shuffle: bool = True, seed: int = 0) -> None:
        self._arguments = folder, batch_size, shuffle, seed
        self.batch_size, self._shuffle = positive_int("batch_size", batch_size), yes_or_no("shuffle", shuffle)
        self.seed = natural_int("seed", seed)
        paths = _paths(expanded(folder, "folder"))
        opened = [_opened(path) for path in paths]
        self._files, self._type = [values for values, _ in opened], opened[0][1]
        for path, (values, kind) in zip(paths, opened, strict=True):
            if (values.shape[1], kind) != (self._files[0].shape[1], self._type):
                one, other = (f"rows of {v.shape[1]} values of {k}" for v, k in (opened[0], (values, kind)))
                raise ValueError(
                    f"all files of a folder must be alike, got {one} in {paths[0]} and {other} in {path}; convert one"
                )
        self._ends = np.cumsum([len(file) for file in self._files])
        self.num_data, self.dim = int(self._ends[-1]), int(self._files[0].shape[1])
        self.batches_per_pass = -(-self.num_data // self.batch_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments  # a worker of a DataLoader maps the files itself

    def __len__(self) -> int:
        return self.num_data

    def __getitem__(self, index: int) -> Tensor:
        """Return a row, shape ``(d,)``."""
        if not 0 <= index < self.num_data:
            raise IndexError(f"row {index} of {self.num_data}")
        return self._rows(np.array([index]))[0]

    def __iter__(self) -> Iterator[Tensor]:
        return self.start_at(0)

    def start_at(self, step: int) -> Iterator[Tensor]:
        """Yield the batches from number `step` (from 0) on, shape ``(B, d)``; the last one of a pass may be smaller."""
        passes, first = divmod(natural_int("step", step), self.batches_per_pass)
        for number in itertools.count(passes):
            yield from self._pass(number, first if number == passes else 0)

    def _pass(self, number: int, first: int) -> Iterator[Tensor]:
        size, group = self.batch_size, self.batch_size * _GROUP
        order = self._order_of_runs(number)
        for start in range(first // _GROUP * group, self.num_data, group):
            places = np.arange(start, min(start + group, self.num_data))
            rows = order[places // _RUN] * _RUN + places % _RUN
            if self._shuffle:
                rows = np.random.default_rng([self.seed, number, start]).permutation(rows)
            skipped = max(0, first * size - start)
            for batch in range(skipped, len(rows), size):
                yield self._rows(rows[batch : batch + size])

    def _order_of_runs(self, number: int) -> np.ndarray:
        """Return the order of the runs in a pass; the last run, which may be shorter, stays last."""
        runs = np.arange(-(-self.num_data // _RUN))
        if self._shuffle:
            runs[:-1] = np.random.default_rng([self.seed, number]).permutation(len(runs) - 1)
        return runs

    def _rows(self, rows: np.ndarray) -> Tensor:
        files = np.searchsorted(self._ends, rows, side="right")
        batch: Tensor | None = None
        for file in np.unique(files):
            own = files == file
            start = self._ends[file] - len(self._files[file])
            values = as_numbers(self._files[file][rows[own] - start])
            values = values.view(self._type) if self._type == torch.bfloat16 else values
            values = values if self._type == torch.float64 else values.float()
            batch = values.new_empty(len(rows), self.dim) if batch is None else batch
            batch[torch.as_tensor(own)] = values
        assert batch is not None
        return batch


def shards(folder: str | os.PathLike, batch_size: int = 1024, shuffle: bool = True, seed: int = 0) -> Shards:
    """Return the rows of all ``.npy`` and ``.safetensors`` files in a folder as an endless stream of batches.

    The files are memory-mapped, so they may be larger than memory: a batch reads its own rows. ``vsc_pyro.fit(model,
    shards(folder), steps=...)`` trains on it, and a resumed run repeats it exactly. It is a map-style torch `Dataset`
    of rows as well, for a `DataLoader`, whose random order reads row by row.

    A pass yields every row once. With `shuffle`, passes differ: runs of 64 successive rows are in random order, and the
    rows of 16 successive batches are mixed. The order depends on `seed` alone, and memory on the batch and N / 64
    integers.

    Args:
        folder: holds files of shape ``(n, d)``, n rows each, all of the same d and type, floating-point or whole
            numbers of any byte order. Files are read in the order of their names. A safetensors file holds one tensor,
            and needs the package `safetensors`.
        batch_size: number of rows in a batch; the last one of a pass may be smaller.
        shuffle: False yields rows in the order of the files.
        seed: seed of the order.

    Returns:
        A `Shards`. Its batches are float64 if the files are, and float32 otherwise.

    Raises:
        FileNotFoundError: no such folder, or no such file in it.
        ImportError: safetensors files without the package.
        ValueError: a file that is damaged, of another shape or type; the message names it.

    Example:
        >>> import os, tempfile, numpy as np
        >>> import vsc_pyro as vsc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in range(2):
        ...         np.save(os.path.join(folder, f"{number}.npy"), np.ones((300, 8), np.float16))
        ...     data = vsc.datasets.shards(folder, batch_size=256)
        ...     [tuple(batch.shape) for batch, _ in zip(data, range(3))], len(data)
        ([(256, 8), (256, 8), (88, 8)], 600)
    """
    return Shards(folder, batch_size, shuffle, seed)


def _paths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist; pass a folder of {' or '.join(_SUFFIXES)} files")
    found = (path for path in folder.iterdir() if path.suffix in _SUFFIXES)
    paths = sorted(path for path in found if not path.name.startswith("."))  # such as files that are being written
    if not paths:
        raise FileNotFoundError(f"folder {folder} holds no {' or '.join(_SUFFIXES)} file; put some there")
    return paths


def _opened(path: Path) -> tuple[np.ndarray, torch.dtype]:
    """Return the content of a file, memory-mapped, shape ``(n, d)``, and its type; NumPy has no bfloat16."""
    try:
        values, kind = _array(path) if path.suffix == ".npy" else _safe_tensor(path)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} was not read ({error}); write it again") from error
    if values.ndim != 2 or 0 in values.shape or kind not in _TYPES:
        raise ValueError(
            f"{path} must hold real numbers of shape (n, d), got {kind} of shape {values.shape}; write rows of numbers"
        )
    return values, _TYPES[kind]


def _array(path: Path) -> tuple[np.ndarray, str]:
    values = np.lib.format.open_memmap(path, mode="r")
    return values, str(values.dtype.newbyteorder("="))


def _safe_tensor(path: Path) -> tuple[np.ndarray, str]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f"{path} needs the package safetensors: pip install safetensors, or write .npy") from error
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            if len(names) != 1:
                raise ValueError(f"it must hold one tensor, got {len(names)}: {', '.join(names[:5])}")
            part = file.get_slice(names[0])
            shape, kind = tuple(part.get_shape()), part.get_dtype()
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    # The only tensor follows the header. The package would copy it, or map it as if all of it could be changed.
    with open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    stored, name = _SAFE_TYPES.get(kind, ("u1", kind))
    return np.memmap(path, stored, "r", start, shape), name
